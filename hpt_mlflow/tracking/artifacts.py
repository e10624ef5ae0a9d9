"""The models and training states that a run has kept."""

from __future__ import annotations

import tempfile
from pathlib import Path

from mlflow.entities import LoggedModel, LoggedModelStatus
from mlflow.tracking import MlflowClient

from hpt_mlflow.training.state import JSON_FILE, read_description


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
