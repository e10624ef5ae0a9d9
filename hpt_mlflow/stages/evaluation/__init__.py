"""The parts of an evaluation."""
