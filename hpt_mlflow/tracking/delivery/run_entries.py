"""The entries of a spool that are about a run itself. See `entries` for what holds for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from hpt_mlflow.tracking import tags as tag
from hpt_mlflow.tracking.artifacts import state_step
from hpt_mlflow.tracking.delivery.content import Content
from hpt_mlflow.tracking.delivery.run_client import RunClient, heartbeat_tag
from hpt_mlflow.training.state import JSON_FILE, TENSORS_FILE

# MLflow's limit on metrics in a batch is 1000.
BATCH = 900


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
