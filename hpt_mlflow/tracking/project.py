"""The `mlflow run` command that started a run."""

from __future__ import annotations

import shlex
from urllib.request import url2pathname

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from hpt_mlflow.tracking import tags as tag
from hpt_mlflow.tracking.connection import prepare

LOCAL, CONDA = "local", "conda"


def project_command(run_id: str) -> str:
    """The `mlflow run` of a run, with its project and environment manager; empty if MLflow does not answer."""
    prepare()
    try:
        tags = MlflowClient().get_run(run_id).data.tags
    except MlflowException:
        return ""
    # MLflow records every environment manager but the local one; its default is conda.
    manager = tags.get(tag.PROJECT_ENVIRONMENT, LOCAL)
    source = tags.get(tag.PROJECT_SOURCE, ".")
    # MLflow records a folder as an address; `mlflow run` takes a path.
    path = url2pathname(source.removeprefix("file://")) if source.startswith("file://") else source
    words = ["mlflow", "run", path]
    return shlex.join(words + ([] if manager == CONDA else ["--env-manager", manager]))
