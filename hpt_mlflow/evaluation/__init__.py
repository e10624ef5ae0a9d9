"""What frozen features are worth: linear probe, nearest neighbours, metrics."""
