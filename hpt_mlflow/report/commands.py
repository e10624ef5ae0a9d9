"""Commands that descriptions of runs give their readers to type."""

from __future__ import annotations

import os
import shlex

# How the MLflow Project was started, such as `mlflow run /path --env-manager local`; empty for the `hpt` command.
PROJECT_VARIABLE = "HPT_PROJECT_COMMAND"


def stage_command(stage: str, **options: str) -> str:
    """The command that runs a stage in the way in which this one was started."""
    project = os.environ.get(PROJECT_VARIABLE)
    if project:
        return f"{project} -e {stage}" + "".join(f" -P {name}={shlex.quote(text)}" for name, text in options.items())
    words = [word for name, text in options.items() for word in (f"--{name.replace('_', '-')}", text)]
    return shlex.join(["hpt", stage, *words])
