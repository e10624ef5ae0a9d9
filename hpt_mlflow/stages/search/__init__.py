"""The parts of a search for augmentations."""
