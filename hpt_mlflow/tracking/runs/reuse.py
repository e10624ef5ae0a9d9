"""Finished work, found by its fingerprint in whatever run it was nested in."""

from __future__ import annotations

import re

from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from hpt_mlflow.tracking import tags as tag
from hpt_mlflow.tracking.addresses import exists, find_version
from hpt_mlflow.tracking.connection import tracking_errors
from hpt_mlflow.tracking.identity import Identity
from hpt_mlflow.tracking.runs.nesting import experiment_id_here

VERSION = r"models:/.+/\d+"


def finished_run(identity: Identity) -> Run | None:
    """The newest finished run of the same work in this experiment.

    Its model and the version that it started from still exist, and are the same ones: a registered model that was
    deleted and made again numbers its versions from 1 again.
    """
    with tracking_errors("cannot look for finished runs"):
        runs = MlflowClient().search_runs(
            [experiment_id_here()],
            f"tags.`{tag.FINGERPRINT}` = '{identity.fingerprint}' and attributes.status = 'FINISHED'",
            order_by=["attributes.start_time DESC"],
        )
        return next((run for run in runs if _is_whole(run)), None)


def metric_by_step(run_id: str, metric: str) -> dict[int, float]:
    """The values of a metric of a run by step; the last one of each."""
    with tracking_errors(f"cannot read the run {run_id}"):
        history = MlflowClient().get_metric_history(run_id, metric)
        return {point.step: point.value for point in sorted(history, key=lambda point: point.timestamp)}


def get_run(run_id: str) -> Run:
    """A run as the server knows it."""
    with tracking_errors(f"cannot read the run {run_id}"):
        return MlflowClient().get_run(run_id)


def _is_whole(run: Run) -> bool:
    tags = run.data.tags
    parent, model = tags.get(tag.PARENT_MODEL, ""), tags.get(tag.MODEL, "")
    if re.fullmatch(VERSION, parent):
        version = find_version(parent)
        if version is not None and int(version.creation_timestamp) > run.info.end_time:
            return False
    if tags.get(tag.STAGE) == "evaluate":
        return True
    if not re.fullmatch(VERSION, model):
        return bool(model) and exists(model)
    version = find_version(model)
    return version is not None and version.run_id == run.info.run_id
