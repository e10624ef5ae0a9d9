"""Runs: started, resumed, reused, and ended in their true state."""
