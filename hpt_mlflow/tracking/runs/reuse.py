"""Work that is done: found by what makes it the same, whatever run it was nested in."""

from __future__ import annotations

import re

from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from hpt_mlflow.tracking import tags as tag
from hpt_mlflow.tracking.connection import tracking_errors
from hpt_mlflow.tracking.identity import Identity
from hpt_mlflow.tracking.models.evaluations import exists, find_version
from hpt_mlflow.tracking.runs.nesting import experiment_id_here

VERSION = r"models:/.+/\d+"


def finished_run(identity: Identity) -> Run | None:
    """The newest finished run of the same work in this experiment.

    Its model, where it made one, is still there, and the version that it started from, too; and they are still the same
    ones: those of a registered model that was deleted and made again have the same numbers.
    """
    with tracking_errors("cannot look for finished runs"):
        found = MlflowClient().search_runs(
            [experiment_id_here()],
            f"tags.`{tag.FINGERPRINT}` = '{identity.fingerprint}' and attributes.status = 'FINISHED'",
            order_by=["attributes.start_time DESC"],
        )
        return next((run for run in found if _is_whole(run)), None)


def figures_by_step(run_id: str, metric: str) -> dict[int, float]:
    """All values of a metric of a run, by step; the last one of each."""
    with tracking_errors(f"cannot read the run {run_id}"):
        history = MlflowClient().get_metric_history(run_id, metric)
        return {point.step: point.value for point in sorted(history, key=lambda point: point.timestamp)}


def run_of(run_id: str) -> Run:
    """A run as the server knows it."""
    with tracking_errors(f"cannot read the run {run_id}"):
        return MlflowClient().get_run(run_id)


def _is_whole(run: Run) -> bool:
    tags = run.data.tags
    if _is_newer(tags.get(tag.PARENT_MODEL, ""), run):
        return False
    return tags.get(tag.STAGE) == "evaluate" or _has_made(run, tags.get(tag.MODEL, ""))


def _has_made(run: Run, address: str) -> bool:
    """Whether a model is there, and this run has made it."""
    if not re.fullmatch(VERSION, address):
        return bool(address) and exists(address)
    version = find_version(address)
    return version is not None and version.run_id == run.info.run_id


def _is_newer(address: str, run: Run) -> bool:
    """Whether an address is that of a registered version that was made when the run had ended."""
    if not re.fullmatch(VERSION, address):
        return False
    version = find_version(address)
    return version is not None and int(version.creation_timestamp) > run.info.end_time
