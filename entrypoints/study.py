"""The entry point `study` of MLproject."""

from hpt_mlflow.cli.project import run_entry_point

run_entry_point("study")
