"""The entry point `tune` of MLproject."""

from hpt_mlflow.cli.project import run_entry_point

run_entry_point("tune")
