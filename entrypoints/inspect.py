"""The entry point `inspect` of MLproject."""

from hpt_mlflow.cli.project import run_entry_point

run_entry_point("inspect")
