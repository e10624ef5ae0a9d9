"""One script a stage, called by MLproject."""
