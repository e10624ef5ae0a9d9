"""The protocols of evaluation, one per file."""
