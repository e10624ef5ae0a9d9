"""Everything that talks to MLflow: runs, metrics, models, the registry."""
