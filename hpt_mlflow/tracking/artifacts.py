"""The models and training states that a run has kept, and whether a run may keep any."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import mlflow
from mlflow.entities import LoggedModel, LoggedModelStatus
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.tracking import MlflowClient

from hpt_mlflow.errors import HptError
from hpt_mlflow.tracking.reasons import reason
from hpt_mlflow.training.state import JSON_FILE, read_description

WRITE_TEST_FILE = "hpt-write-test.txt"


def models_of_run(client: MlflowClient, run_id: str, experiment_id: str) -> dict[str, LoggedModel]:
    """The LoggedModels of a run by name, complete or not; if several have one name, a complete one."""
    models: list[LoggedModel] = []
    page_token: str | None = None
    while True:
        page = client.search_logged_models([experiment_id], f"source_run_id = '{run_id}'", page_token=page_token)
        models += page
        page_token = page.token
        if not page_token:
            break
    return {model.name: model for model in sorted(models, key=lambda model: model.status == LoggedModelStatus.READY)}


def state_step(client: MlflowClient, run_id: str, folder: str) -> int:
    """The step of the training state in an artifact folder, as its description says; -1 if there is none."""
    file = f"{folder}/{JSON_FILE}"
    if not any(artifact.path == file for artifact in client.list_artifacts(run_id, folder)):
        return -1
    with tempfile.TemporaryDirectory() as temporary:
        downloaded = client.download_artifacts(run_id, file, temporary)
        try:
            return int(read_description(Path(downloaded).parent)["step"])
        except (OSError, ValueError, KeyError, TypeError):
            return -1


def check_may_store(experiment_id: str) -> None:
    """Refuse an experiment that cannot take models and artifacts, before any long work; asks each server once.

    Raises:
        HptError: its artifact store does not take a file.
        MlflowException: the server knows no LoggedModels.
    """
    if mlflow.get_tracking_uri().startswith(("http:", "https:")):
        _check_may_store(mlflow.get_tracking_uri(), experiment_id)


@cache
def _check_may_store(tracking_uri: str, experiment_id: str) -> None:
    client = MlflowClient()
    client.search_logged_models([experiment_id], max_results=1)
    experiment = client.get_experiment(experiment_id)
    location = experiment.artifact_location
    if urlsplit(location).scheme in ("", "file"):
        return
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / WRITE_TEST_FILE
        file.write_text("hpt tests with this file whether it may store artifacts here.\n")
        try:
            get_artifact_repository(location, tracking_uri).log_artifact(str(file))
        # Stores raise errors of their own.
        except Exception as error:
            where = f"of the experiment {experiment.name} in {location}"
            raise HptError(f"cannot store artifacts {where}: {reason(error)}") from error
