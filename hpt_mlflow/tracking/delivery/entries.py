"""How each kind of entry of a spool is told to MLflow.

Every method can be repeated: what MLflow has already is not told twice. So an entry whose delivery broke off, or may
have arrived without an answer, is simply delivered again.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.tracking import MlflowClient

from hpt_mlflow.errors import HptError
from hpt_mlflow.files import replacing
from hpt_mlflow.tracking import tags as tag
from hpt_mlflow.tracking.connection import keep_secrets
from hpt_mlflow.tracking.delivery.spool import Entry
from hpt_mlflow.tracking.tags import STATE_FOLDERS
from hpt_mlflow.training.state import JSON_FILE, TENSORS_FILE, read_description

# MLflow's limit on metrics in a batch is 1000.
BATCH = 900
# Stands in a description for the address of the version that is being registered.
VERSION_PLACEHOLDER = "{{registered version}}"
MODEL_FILE = "MLmodel"


class Delivery:
    """Tells MLflow about one run.

    Args:
        model_name: registered model for its versions, in place of the one that they were made for.
    """

    def __init__(self, run_id: str, experiment_id: str, model_name: str | None = None) -> None:
        self.run_id = run_id
        self.experiment_id = experiment_id
        self._model_name = model_name
        self._client = MlflowClient()
        self._models: dict[str, str] = {}

    def deliver(self, entries: Sequence[Entry]) -> str:
        """Deliver one entry, or several of metrics; gives the address of a registered version, or nothing.

        Raises whatever MLflow, its client's libraries and the file system do.
        """
        first = entries[0]
        if first.kind == "metrics":
            self.metrics([metric for entry in entries for metric in entry.payload["metrics"]])
            return ""
        answer = getattr(self, first.kind)(first)
        return answer or ""

    def answers(self) -> bool:
        """Whether the server answers at all."""
        try:
            self._client.get_run(self.run_id)
        except MlflowException as error:
            # That there is no such run any more is an answer.
            return error.error_code == "RESOURCE_DOES_NOT_EXIST"
        except Exception:
            return False
        return True

    def status(self) -> str:
        """The state of the run, as the server knows it."""
        return str(self._client.get_run(self.run_id).info.status)

    def heartbeat(self) -> None:
        """Say that the run is being worked on."""
        self._client.set_tag(self.run_id, tag.HEARTBEAT, str(int(time.time())))

    def metrics(self, values: Iterable[Sequence[Any]]) -> None:
        """Log metrics: name, value, timestamp in milliseconds, step, and the model that they belong to or None."""
        metrics = [
            Metric(name, value, timestamp, step, model_id=self._model_id(model) if model else None, run_id=self.run_id)
            for name, value, timestamp, step, model in values
        ]
        beat = [RunTag(tag.HEARTBEAT, str(int(time.time())))]
        for start in range(0, len(metrics), BATCH):
            self._client.log_batch(self.run_id, metrics=metrics[start : start + BATCH], tags=beat)

    def params(self, entry: Entry) -> None:
        """Log parameters."""
        self._client.log_batch(self.run_id, params=[Param(*pair) for pair in entry.payload.items()])

    def tags(self, entry: Entry) -> None:
        """Set tags."""
        self._client.log_batch(self.run_id, tags=[RunTag(*pair) for pair in entry.payload.items()])

    def artifacts(self, entry: Entry) -> None:
        """Log files at the top of the run's artifacts."""
        assert entry.folder is not None
        self._client.log_artifacts(self.run_id, str(entry.folder))

    def state(self, entry: Entry) -> None:
        """Log a training state in place of the older of the two that are kept, its description last."""
        assert entry.folder is not None
        steps = {folder: state_step(self._client, self.run_id, folder) for folder in STATE_FOLDERS}
        if max(steps.values()) >= entry.payload["step"]:
            return
        oldest = min(steps, key=lambda folder: steps[folder])
        for name in (TENSORS_FILE, JSON_FILE):
            self._client.log_artifact(self.run_id, str(entry.folder / name), oldest)

    def model(self, entry: Entry) -> None:
        """Make a milestone a LoggedModel of the run."""
        assert entry.folder is not None
        name, step = entry.payload["name"], entry.payload["step"]
        model = find_milestones(self._client, self.run_id, self.experiment_id).get(name)
        if model is None:
            model = self._client.create_logged_model(
                self.experiment_id, name, self.run_id, entry.payload["tags"], entry.payload["params"]
            )
        run = self._client.get_run(self.run_id)
        known = run.outputs.model_outputs if run.outputs else []
        if model.model_id not in [output.model_id for output in known]:
            self._client.log_outputs(self.run_id, [LoggedModelOutput(model.model_id, step)])
        if model.status != LoggedModelStatus.READY:
            _sign(entry.folder, model, self.run_id)
            self._client.log_model_artifacts(model.model_id, str(entry.folder))
            self._client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)

    def version(self, entry: Entry) -> str:
        """Make a milestone a new version of a registered model; tell the run about it; give its address."""
        payload = entry.payload
        name = self._model_name or payload["model_name"]
        version = self._register(self._model_id(payload["model"]), name, payload["tags"])
        if payload["alias"]:
            self._client.set_registered_model_alias(name, payload["alias"], version)
        address = f"models:/{name}/{version}"
        description = payload["description"].replace(VERSION_PLACEHOLDER, address)
        tags = [RunTag(tag.MODEL, address), RunTag(tag.DESCRIPTION, description)]
        self._client.log_batch(self.run_id, tags=tags)
        return address

    def end(self, entry: Entry) -> None:
        """End the run in the state that it came to; `if_running`: unless it has ended already."""
        if entry.payload.get("if_running") and self.status() != "RUNNING":
            return
        self._client.set_terminated(self.run_id, entry.payload["status"], entry.payload["end_time"])

    def _register(self, model_id: str, model_name: str, tags: dict[str, str]) -> str:
        known = self._client.search_model_versions(f"name='{model_name}'")
        for version in known:
            if model_id in (version.source or ""):
                return str(version.version)
        try:
            self._client.create_registered_model(model_name)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_ALREADY_EXISTS", "ALREADY_EXISTS"):
                raise
        source = f"models:/{model_id}"
        created = self._client.create_model_version(model_name, source, self.run_id, tags, model_id=model_id)
        return str(created.version)

    def _model_id(self, model: str) -> str:
        """The id of a milestone by its name; an id is itself."""
        if model.startswith("m-"):
            return model
        if model not in self._models:
            found = find_milestones(self._client, self.run_id, self.experiment_id).get(model)
            if found is None or found.status != LoggedModelStatus.READY:
                raise HptError(f"the model {model} of the run is not there yet")
            self._models[model] = found.model_id
        return self._models[model]


def find_milestones(client: MlflowClient, run_id: str, experiment_id: str) -> dict[str, LoggedModel]:
    """The models that a run has kept, complete or not, by name; a complete one where there are several."""
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
    """The step of the training state in an artifact folder, as its description says; -1 where there is none."""
    if not any(file.path == f"{folder}/{JSON_FILE}" for file in client.list_artifacts(run_id, folder)):
        return -1
    with tempfile.TemporaryDirectory() as temporary:
        file = client.download_artifacts(run_id, f"{folder}/{JSON_FILE}", temporary)
        try:
            return int(read_description(Path(file).parent)["step"])
        except (OSError, ValueError, KeyError, TypeError):
            return -1


def connect_to(tracking_uri: str, registry_uri: str) -> None:
    """Speak to these servers from now on."""
    mlflow.set_tracking_uri(tracking_uri)
    mlflow.set_registry_uri(registry_uri)
    keep_secrets(tracking_uri)


def _sign(folder: Path, model: LoggedModel, run_id: str) -> None:
    """Write into a saved model whose it is, as MLflow itself does when it logs one."""
    described = Model.load(str(folder))
    described.model_id = model.model_id
    described.model_uuid = model.model_id
    described.artifact_path = model.artifact_location
    described.run_id = run_id
    # A kill in the middle of it must not leave half a description behind: no later delivery could read that.
    with replacing(folder / MODEL_FILE) as temporary:
        described.save(str(temporary))
