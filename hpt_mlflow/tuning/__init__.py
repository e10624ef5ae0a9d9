"""The search with Optuna: its space, its storage, its trials, and the effects that they show."""
