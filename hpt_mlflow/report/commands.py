"""Commands that descriptions of runs give their readers to type."""

from __future__ import annotations

import os
import re
import shlex

# How the MLflow Project was started, such as `mlflow run /path --env-manager local`; empty for the `hpt` command.
PLACEHOLDER = re.compile(r"\{\{.*\}\}")
PROJECT_VARIABLE = "HPT_PROJECT_COMMAND"


def stage_command(stage: str, **options: str) -> str:
    """The command that runs a stage in the way in which this one was started."""
    project = os.environ.get(PROJECT_VARIABLE)
    if project:
        return f"{project} -e {stage}" + "".join(f" -P {name}={_quoted(text)}" for name, text in options.items())
    return f"hpt {stage}" + "".join(f" --{name.replace('_', '-')} {_quoted(text)}" for name, text in options.items())


def _quoted(text: str) -> str:
    """As a shell wants it; `{{a placeholder}}`, which becomes an address, needs no quotes."""
    return text if PLACEHOLDER.fullmatch(text) else shlex.quote(text)
