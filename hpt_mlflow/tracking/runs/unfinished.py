"""Runs that can be resumed, as `hpt runs` lists them."""

from __future__ import annotations

from typing import NamedTuple

import mlflow
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from hpt_mlflow.tracking import tags as tag
from hpt_mlflow.tracking.artifacts import state_step
from hpt_mlflow.tracking.connection import tracking_errors
from hpt_mlflow.tracking.runs.liveness import heartbeat_age_seconds, is_alive
from hpt_mlflow.tracking.runs.nesting import experiment_id_here
from hpt_mlflow.tracking.tags import STATE_FOLDERS

UNITS = (("d", 86_400), ("h", 3_600), ("min", 60))


class UnfinishedRun(NamedTuple):
    """A run that is not finished.

    Attributes:
        state: `running on HOST`, `interrupted`, `failed`, or `died on HOST` if its process disappeared.
        saved: its newest training state, `step 2000 of 5000`.
        last_seen: time since its last heartbeat.
        command: what resumes it; empty if it is running, or if the run around it resumes it.
    """

    run_id: str
    name: str
    state: str
    saved: str
    last_seen: str
    command: str


def unfinished_runs() -> list[UnfinishedRun]:
    """Unfinished runs of all experiments, newest first."""
    with tracking_errors("cannot list the runs"):
        experiments = [experiment.experiment_id for experiment in mlflow.search_experiments()]
        runs = mlflow.search_runs(
            experiments,
            f"tags.`{tag.CONTINUE}` != '' and attributes.status != 'FINISHED'",
            order_by=["attributes.start_time DESC"],
            output_format="list",
        )
        client = MlflowClient()
        return [_describe(client, run) for run in runs]


def _describe(client: MlflowClient, run: Run) -> UnfinishedRun:
    at_work = is_alive(run)
    host = run.data.tags.get(tag.HOST, "an unknown machine")
    state = {"KILLED": "interrupted", "FAILED": "failed"}.get(run.info.status, f"died on {host}")
    step = max(state_step(client, run.info.run_id, folder) for folder in STATE_FOLDERS)
    steps = run.data.params.get(tag.setting_param("steps"), "?")
    return UnfinishedRun(
        run.info.run_id,
        run.info.run_name or "",
        f"running on {host}" if at_work else state,
        f"step {step} of {steps}" if step >= 0 else "none",
        _ago(heartbeat_age_seconds(run)),
        "" if at_work or tag.PARENT_RUN in run.data.tags else _command(run),
    )


def _command(run: Run) -> str:
    experiment_id = run.info.experiment_id
    elsewhere = "" if experiment_id == experiment_id_here() else f"MLFLOW_EXPERIMENT_ID={experiment_id} "
    return elsewhere + run.data.tags.get(tag.CONTINUE, "")


def _ago(seconds: float) -> str:
    for unit, length in UNITS:
        if seconds >= length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"
