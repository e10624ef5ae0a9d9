"""The Optuna search: its space, its storage, its trials, and what they say."""
