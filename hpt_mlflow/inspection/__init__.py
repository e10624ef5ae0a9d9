"""What a dataset is like before anything learns from it: its sizes, near copies, blank images and classes."""
