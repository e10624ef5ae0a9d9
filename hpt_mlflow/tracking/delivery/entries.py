"""The kinds of entries that a spool holds: what each contains, and how it is delivered to MLflow.

Every delivery can be repeated: MLflow is not sent what it has already. So an entry whose delivery was cut off, or got
no answer, is simply delivered again. The fields of a class are the JSON of its entries on users' disks: a new field
needs a default.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.models import Model as MlflowModel

from hpt_mlflow.errors import HptError
from hpt_mlflow.files import replacing
from hpt_mlflow.tracking import tags as tag
from hpt_mlflow.tracking.artifacts import models_of_run, state_step
from hpt_mlflow.tracking.connection import without_retries
from hpt_mlflow.tracking.delivery.run_client import RunClient, heartbeat_tag
from hpt_mlflow.tracking.delivery.spool import Entry
from hpt_mlflow.training.state import JSON_FILE, TENSORS_FILE

# MLflow's limit on metrics in a batch is 1000.
BATCH = 900
# MLflow's limit on the description of a version.
LONGEST_DESCRIPTION = 5000
MODEL_DESCRIPTION = (
    "Models of Hierarchical PreTraining. Each version says what it has learned from, and how to use it. `hpt lineage` "
    "shows the stages behind a version, `hpt compare` says which of two is better, and `hpt promote` moves the alias "
    "champion."
)
MODEL_FILE = "MLmodel"


class Content(ABC):
    """What an entry contains."""

    kind: ClassVar[str]
    has_files: ClassVar[bool] = False

    @property
    def payload(self) -> dict[str, Any]:
        """As JSON holds it."""
        return dict(vars(self))

    @classmethod
    def read(cls, payload: Mapping[str, Any]) -> Content:
        """The opposite of `payload`; raises TypeError if it is not one."""
        return cls(**payload)

    def __str__(self) -> str:
        return self.kind

    @abstractmethod
    def deliver(self, run: RunClient, folder: Path) -> str | None:
        """Send it to MLflow.

        Args:
            folder: the entry's files, if this kind has files.

        Returns:
            The address of a registered version.
        """


@dataclass(frozen=True)
class Metrics(Content):
    """Metrics of a run.

    Attributes:
        metrics: name, value, timestamp in milliseconds, step, and name or id of the model that the metric belongs to,
            or None; and name and digest of the dataset that it was measured on, if that is of interest.
    """

    kind = "metrics"
    metrics: Sequence[Sequence[Any]]

    def deliver(self, run: RunClient, folder: Path) -> None:
        """Log them, with a heartbeat."""
        metrics = [_metric(run, *row) for row in self.metrics]
        for start in range(0, len(metrics), BATCH):
            batch = metrics[start : start + BATCH]
            try:
                run.mlflow.log_batch(run.run_id, batch, tags=[heartbeat_tag()])
            except MlflowException as error:
                # Whoever may read the model of another team may not add to its metrics: the run alone gets them.
                if error.error_code != "PERMISSION_DENIED" or not any(metric.model_id for metric in batch):
                    raise
                run.mlflow.log_batch(run.run_id, [_of_run_alone(metric) for metric in batch], tags=[heartbeat_tag()])


@dataclass(frozen=True)
class Pairs(Content):
    """Names and values."""

    values: Mapping[str, str]

    @property
    def payload(self) -> dict[str, Any]:
        """The pairs themselves."""
        return dict(self.values)

    @classmethod
    def read(cls, payload: Mapping[str, Any]) -> Content:
        """The opposite of `payload`."""
        return cls(payload)


class Params(Pairs):
    """Parameters of the run."""

    kind = "params"

    def deliver(self, run: RunClient, folder: Path) -> None:
        """Log them."""
        run.mlflow.log_batch(run.run_id, params=[Param(*pair) for pair in self.values.items()])


class Tags(Pairs):
    """Tags of the run."""

    kind = "tags"

    def deliver(self, run: RunClient, folder: Path) -> None:
        """Set them."""
        run.mlflow.log_batch(run.run_id, tags=[RunTag(*pair) for pair in self.values.items()])


@dataclass(frozen=True)
class Files(Content):
    """Files among the run's artifacts."""

    kind = "artifacts"
    has_files = True
    files: Sequence[str] = ()

    def __str__(self) -> str:
        return f"the files {', '.join(self.files)}"

    def deliver(self, run: RunClient, folder: Path) -> None:
        """Log them."""
        run.mlflow.log_artifacts(run.run_id, str(folder))


@dataclass(frozen=True)
class State(Content):
    """A training state."""

    kind = "state"
    has_files = True
    step: int

    def __str__(self) -> str:
        return f"the training state of step {self.step}"

    def deliver(self, run: RunClient, folder: Path) -> None:
        """Replace the older of the two that the run keeps, the description last."""
        steps = {name: state_step(run.mlflow, run.run_id, name) for name in tag.STATE_FOLDERS}
        if max(steps.values()) >= self.step:
            return
        oldest = min(steps, key=lambda name: steps[name])
        for file in (TENSORS_FILE, JSON_FILE):
            run.mlflow.log_artifact(run.run_id, str(folder / file), oldest)


@dataclass(frozen=True)
class Model(Content):
    """A model as `mlflow.pyfunc.save_model` writes it, which becomes a LoggedModel of the run."""

    kind = "model"
    has_files = True
    name: str
    step: int
    params: Mapping[str, str]
    tags: Mapping[str, str]

    def __str__(self) -> str:
        return f"the model {self.name}"

    def deliver(self, run: RunClient, folder: Path) -> None:
        """Create it, link it to the run, and upload its files, as far as that is not done."""
        model = models_of_run(run.mlflow, run.run_id, run.experiment_id).get(self.name)
        if model is None:
            with without_retries():
                model = run.mlflow.create_logged_model(
                    run.experiment_id, self.name, run.run_id, dict(self.tags), dict(self.params)
                )
        outputs = run.mlflow.get_run(run.run_id).outputs
        if model.model_id not in [output.model_id for output in (outputs.model_outputs if outputs else [])]:
            run.mlflow.log_outputs(run.run_id, [LoggedModelOutput(model.model_id, self.step)])
        if model.status != LoggedModelStatus.READY:
            _sign(folder, model, run.run_id)
            run.mlflow.log_model_artifacts(model.model_id, str(folder))
            run.mlflow.finalize_logged_model(model.model_id, LoggedModelStatus.READY)


@dataclass(frozen=True)
class Version(Content):
    """A model of the run that becomes a version of a registered model; the run is told its address."""

    kind = "version"
    model: str
    model_name: str
    tags: Mapping[str, str]
    alias: str | None = None
    description: str = ""

    def __str__(self) -> str:
        return f"a version of {self.model_name}"

    def deliver(self, run: RunClient, folder: Path) -> str:
        """Register it, unless it is."""
        name = run.model_name or self.model_name
        model_id = run.model_id(self.model)
        version = self._register(run, name, model_id)
        _link(run, model_id, name, version)
        if self.alias:
            run.mlflow.set_registered_model_alias(name, self.alias, version)
        address = f"models:/{name}/{version}"
        description = self.description.replace(tag.VERSION_PLACEHOLDER, address)
        run.mlflow.update_model_version(name, version, description[:LONGEST_DESCRIPTION])
        run.mlflow.log_batch(run.run_id, tags=[RunTag(tag.MODEL, address), RunTag(tag.DESCRIPTION, description)])
        return address

    def _register(self, run: RunClient, name: str, model_id: str) -> str:
        for version in run.mlflow.search_model_versions(f"name='{name}'"):
            if model_id in (version.source or ""):
                return str(version.version)
        try:
            run.mlflow.create_registered_model(name, description=MODEL_DESCRIPTION)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_ALREADY_EXISTS", "ALREADY_EXISTS"):
                raise
        source = f"models:/{model_id}"
        with without_retries():
            created = run.mlflow.create_model_version(name, source, run.run_id, dict(self.tags), model_id=model_id)
        return str(created.version)


@dataclass(frozen=True)
class Alias(Content):
    """An alias of a version that is there already."""

    kind = "alias"
    name: str
    version: str
    alias: str

    def __str__(self) -> str:
        return f"the alias {self.alias} of {self.name}"

    def deliver(self, run: RunClient, folder: Path) -> None:
        """Move it."""
        run.mlflow.set_registered_model_alias(self.name, self.alias, self.version)


@dataclass(frozen=True)
class End(Content):
    """The end of the run.

    Attributes:
        end_time: in milliseconds since 1970.
        after: the kind of entries that are delivered first, whatever happens.
        if_running: whether a run that has ended already is left as it is.
    """

    kind = "end"
    status: str
    end_time: int
    after: str | None = None
    if_running: bool = False

    def __str__(self) -> str:
        return f"the end as {self.status}"

    def deliver(self, run: RunClient, folder: Path) -> None:
        """Set the final status."""
        if not (self.if_running and run.status() != "RUNNING"):
            run.mlflow.set_terminated(run.run_id, self.status, self.end_time)


CONTENTS: Mapping[str, type[Content]] = {
    content.kind: content for content in (Metrics, Params, Tags, Files, State, Model, Version, Alias, End)
}


def content_of(entry: Entry) -> Content:
    """What an entry contains.

    Raises:
        HptError: another version of this package has written it.
    """
    try:
        return CONTENTS[entry.kind].read(entry.payload)
    except (KeyError, TypeError) as error:
        raise HptError(f"this version of hpt_mlflow cannot read {entry.kind!r} from the spool") from error


def describe(entry: Entry) -> str:
    """What an entry is called in a message."""
    try:
        return str(content_of(entry))
    except HptError:
        return entry.kind


def deliver(run: RunClient, entries: Sequence[Entry]) -> str:
    """Deliver one entry, or several of metrics; gives the address of a registered version, or nothing.

    Raises whatever MLflow, its client's libraries and the file system do.
    """
    content, folder = content_of(entries[0]), entries[0].folder
    if content.has_files and folder is None:
        raise HptError(f"the files of entry {entries[0].number} are gone from the spool")
    if isinstance(content, Metrics):
        content = Metrics([metric for entry in entries for metric in entry.payload["metrics"]])
    return content.deliver(run, folder or Path()) or ""


def _metric(
    run: RunClient,
    name: str,
    value: float,
    timestamp: int,
    step: int,
    model: str | None,
    dataset_name: str | None = None,
    dataset_digest: str | None = None,
) -> Metric:
    """A metric as MLflow takes it."""
    model_id = run.model_id(model) if model else None
    return Metric(name, value, timestamp, step, model_id, dataset_name, dataset_digest, run.run_id)


def _of_run_alone(metric: Metric) -> Metric:
    """A metric without the model that it belongs to as well."""
    return Metric(metric.key, metric.value, metric.timestamp, metric.step, run_id=metric.run_id)


def _link(run: RunClient, model_id: str, name: str, version: str) -> None:
    """Let the page of a LoggedModel show its version, as `mlflow.register_model` does; a server has done so itself."""
    links = json.loads(run.mlflow.get_logged_model(model_id).tags.get(tag.MODEL_VERSIONS) or "[]")
    if (name, version) not in [(link["name"], str(link["version"])) for link in links]:
        links.append({"name": name, "version": int(version)})
        run.mlflow.set_logged_model_tags(model_id, {tag.MODEL_VERSIONS: json.dumps(links)})


def _sign(folder: Path, model: LoggedModel, run_id: str) -> None:
    """Write into a saved model which LoggedModel it is, as MLflow itself does when it logs one."""
    described = MlflowModel.load(str(folder))
    described.model_id = model.model_id
    described.model_uuid = model.model_id
    described.artifact_path = model.artifact_location
    described.run_id = run_id
    # A kill in the middle must not leave half a description behind: no later delivery could read that.
    with replacing(folder / MODEL_FILE) as temporary:
        described.save(str(temporary))
