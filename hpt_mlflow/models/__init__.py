"""Backbones, MoCo, and the checkpoint format of a backbone."""
