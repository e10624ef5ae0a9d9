"""The entry point `main` of MLproject."""

from hpt_mlflow.cli.project import run_entry_point

run_entry_point("main")
