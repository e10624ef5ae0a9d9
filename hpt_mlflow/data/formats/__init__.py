"""Readers of formats that Pillow does not read, or not in full depth: one file each, listed in `registry`."""
