"""How MLflow has started the project."""

from __future__ import annotations

import shlex
from urllib.request import url2pathname

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from hpt_mlflow.tracking import tags as tag
from hpt_mlflow.tracking.connection import prepare

LOCAL, CONDA = "local", "conda"


def project_command(run_id: str) -> str:
    """The `mlflow run` of a run, with its project and environment manager; empty where MLflow does not answer."""
    prepare()
    try:
        tags = MlflowClient().get_run(run_id).data.tags
    except MlflowException:
        return ""
    # MLflow names the manager of every environment but the local one; without a word it takes conda.
    manager = tags.get(tag.PROJECT_ENVIRONMENT, LOCAL)
    source = tags.get(tag.PROJECT_SOURCE, ".")
    # A folder stands there as an address; `mlflow run` takes a path as people write it.
    path = url2pathname(source.removeprefix("file://")) if source.startswith("file://") else source
    words = ["mlflow", "run", path]
    return shlex.join(words + ([] if manager == CONDA else ["--env-manager", manager]))
