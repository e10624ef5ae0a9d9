"""Starting a run, taking over the one that `mlflow run` made, or resuming an earlier one."""

from __future__ import annotations

import os
import re
import socket
import time
from uuid import uuid4

from mlflow.entities import Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.tracking.context.registry import resolve_tags

from hpt_mlflow.tracking import tags as tag
from hpt_mlflow.tracking.artifacts import check_may_store
from hpt_mlflow.tracking.connection import retries, without_retries
from hpt_mlflow.tracking.identity import Identity
from hpt_mlflow.tracking.runs.nesting import experiment_id_here
from hpt_mlflow.tracking.runs.resume import EarlierRun
from hpt_mlflow.tracking.runs.system_metrics import PREFIX

RETRY_SECONDS = 1.0
NAME_BY_MLFLOW = re.compile(r"[a-z]+-[a-z]+-\d+")


def start(
    name: str, identity: Identity | None, earlier: EarlierRun | None, parent_run_id: str | None
) -> tuple[Run, str, list[tuple[int, dict[str, float]]]]:
    """Start a run, or resume one.

    Args:
        parent_run_id: the run that a new one is nested in.

    Returns:
        The run; the id of the one that `mlflow run` made for this process, or empty; metrics that the run has already,
        by step.
    """
    client = MlflowClient()
    tags = {tag.HOST: socket.gethostname(), tag.HEARTBEAT: str(int(time.time()))} | (identity.tags if identity else {})
    made = os.environ.pop("MLFLOW_RUN_ID", "")
    made_run = client.get_run(made) if made else None
    own = earlier.run if earlier else made_run
    experiment_id = own.info.experiment_id if own else experiment_id_here()
    check_may_store(experiment_id)
    by_mlflow_run = made_run is not None and tag.PROJECT_ENTRY_POINT in made_run.data.tags
    if earlier:
        run_id = earlier.run.info.run_id
        if made and made != run_id:
            mark_as_attempt(client, made, earlier.run)
    elif made_run:
        run_id = made
        if NAME_BY_MLFLOW.fullmatch(made_run.info.run_name or ""):
            client.update_run(made, name=name)
    else:
        parent = {tag.PARENT_RUN: parent_run_id} if parent_run_id else {}
        return create_once(client, experiment_id, name, resolve_tags(parent | tags)), "", []
    client.update_run(run_id, status="RUNNING")
    client.log_batch(run_id, tags=[RunTag(*pair) for pair in tags.items()])
    run = client.get_run(run_id)
    return run, made if by_mlflow_run else "", _history(client, run) if earlier else []


def create_once(client: MlflowClient, experiment_id: str, name: str, tags: dict[str, str]) -> Run:
    """Create a run; if the reply is lost, look for the run before creating another, which would leave one RUNNING."""
    creation_id, left = uuid4().hex, retries()
    while True:
        try:
            with without_retries():
                return client.create_run(experiment_id, tags={**tags, tag.CREATION_ID: creation_id}, run_name=name)
        except MlflowException as error:
            if error.get_http_status_code() < 500:
                raise
            created = client.search_runs([experiment_id], f"tags.`{tag.CREATION_ID}` = '{creation_id}'")
            if created:
                return created[0]
            if not left:
                raise
        left -= 1
        time.sleep(RETRY_SECONDS)


def mark_as_attempt(client: MlflowClient, run_id: str, resumed: Run) -> None:
    """Turn the run that `mlflow run` has just made into a note below the one that is resumed."""
    client.update_run(run_id, name=f"resumes: {resumed.info.run_name}")
    note = f"This command resumed the run `{resumed.info.run_id}`, which this one is nested in."
    tags = {tag.PARENT_RUN: resumed.info.run_id, tag.CONTINUES: resumed.info.run_id, tag.DESCRIPTION: note}
    client.log_batch(run_id, tags=[RunTag(*pair) for pair in tags.items()])


def _history(client: MlflowClient, run: Run) -> list[tuple[int, dict[str, float]]]:
    """All metrics of a run but for system metrics, whose steps are seconds, ordered by step."""
    by_step: dict[int, dict[str, float]] = {}
    for name in (name for name in run.data.metrics if not name.startswith(PREFIX)):
        for metric in client.get_metric_history(run.info.run_id, name):
            by_step.setdefault(metric.step, {})[name] = metric.value
    return sorted(by_step.items())
