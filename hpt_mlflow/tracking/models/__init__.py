"""Registered models: stored, traced back, compared and promoted."""
