"""The steps of a training stage, in order: resolve, prepare, learn."""
