"""The paper's five experiments: which stages each one takes, and what their results say. Nothing here runs anything."""
