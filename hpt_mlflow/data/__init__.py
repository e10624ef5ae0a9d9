"""Datasets, decoding, splitting, channel statistics, and the batches that training draws from them."""
