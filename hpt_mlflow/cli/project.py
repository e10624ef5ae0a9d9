"""The entry points of the MLflow Project: the commands of `hpt`, run in the folder where the user called `mlflow run`.

MLflow runs an entry point in the folder of the project, or in a temporary checkout of it, where a relative path would
name the project's own files. Of a parameter of type `path` it makes an absolute path before that.
"""

from __future__ import annotations

import os
import sys

from hpt_mlflow.cli import hpt
from hpt_mlflow.errors import one_line
from hpt_mlflow.report.commands import PROJECT_VARIABLE
from hpt_mlflow.tracking.project import project_command

WORKING_DIR_OPTION = "--working-dir"
RUN_VARIABLE = "MLFLOW_RUN_ID"


def run_entry_point(stage: str) -> None:
    """Run a stage with the words of this process, the first of which may name the working directory."""
    words = sys.argv[1:]
    if words[:1] == [WORKING_DIR_OPTION]:
        try:
            os.chdir(words[1])
        except OSError as error:
            sys.exit(f"Error: working_dir: {one_line(error)}; give a folder of this machine")
        words = words[2:]
    if run_id := os.environ.get(RUN_VARIABLE):
        os.environ[PROJECT_VARIABLE] = project_command(run_id)
    hpt([stage, *words])
