"""Figures and texts that a run shows."""
