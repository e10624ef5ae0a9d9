"""The parts of a study of the paper."""
