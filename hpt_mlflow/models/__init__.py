"""Backbones, their files, and weights from and for other programs."""
