"""A script per stage, called by MLproject."""
