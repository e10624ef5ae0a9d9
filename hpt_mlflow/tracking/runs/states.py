"""Training states among a run's artifacts: the newest intact one."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

from mlflow.tracking import MlflowClient

from hpt_mlflow.errors import HptError
from hpt_mlflow.tracking.artifacts import state_step
from hpt_mlflow.tracking.connection import tracking_errors
from hpt_mlflow.tracking.tags import STATE_FOLDERS
from hpt_mlflow.training.state import JSON_FILE, TrainingState

log = logging.getLogger("hpt_mlflow")


def newest_state(run_id: str) -> TrainingState | None:
    """The newest training state of a run that passes its checksum, or None.

    Raises:
        HptError: the artifacts cannot be read.
    """
    client = MlflowClient()
    with tracking_errors(f"cannot read the training states of {run_id}"):
        steps = {folder: state_step(client, run_id, folder) for folder in STATE_FOLDERS}
        for folder in sorted(steps, key=lambda folder: -steps[folder]):
            if steps[folder] < 0:
                continue
            with tempfile.TemporaryDirectory() as temporary:
                try:
                    downloaded = client.download_artifacts(run_id, folder, temporary)
                    return TrainingState.read(Path(downloaded))
                except HptError as error:
                    log.warning("the training state of step %s is damaged: %s", steps[folder], error)
                    _retire(client, run_id, folder)
    return None


def _retire(client: MlflowClient, run_id: str, folder: str) -> None:
    """Make a damaged state the next to be replaced: it looks newer than those that the resumed run writes."""
    with tempfile.TemporaryDirectory() as temporary:
        description = Path(temporary) / JSON_FILE
        description.write_text("{}\n")
        client.log_artifact(run_id, str(description), folder)
