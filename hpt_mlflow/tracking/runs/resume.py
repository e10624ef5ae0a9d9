"""Runs that the same command started before: the one to resume, with what it left behind delivered first."""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import mlflow
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from hpt_mlflow.errors import HptError, differences
from hpt_mlflow.tracking import tags as tag
from hpt_mlflow.tracking.connection import tracking_errors
from hpt_mlflow.tracking.delivery.spool import Owner, Spool, SpoolBusyError, spool_folder
from hpt_mlflow.tracking.delivery.sync import drain
from hpt_mlflow.tracking.identity import Identity
from hpt_mlflow.tracking.runs.liveness import is_still_alive
from hpt_mlflow.tracking.runs.nesting import experiment_id_here

DRAIN_SECONDS = 60.0

log = logging.getLogger("hpt_mlflow")


@dataclass(frozen=True)
class EarlierRun:
    """A run that did the same work before.

    Attributes:
        run: as the server knows it.
        spool: open and empty if the run is to be resumed; None if it is finished.
    """

    run: Run
    spool: Spool | None

    @property
    def finished(self) -> bool:
        """Whether there is nothing to resume."""
        return self.spool is None

    @property
    def introduced(self) -> bool:
        """Whether its settings were logged, as they are before the first step."""
        return tag.setting_param("precision") in self.run.data.params


@contextmanager
def earlier_run(identity: Identity, resume: str, parent_run_id: str | None) -> Iterator[EarlierRun | None]:
    """The run to resume, locked by this process for the block.

    Args:
        parent_run_id: the run that it is nested in.
        resume: `auto`: the newest unfinished run of the same work, under the same parent run; inside a parent run, a
            finished one as well. `never`: none. Else the id of a run.

    Raises:
        HptError: the run named by `resume` cannot be resumed; or what an earlier run left behind cannot be delivered.
    """
    earlier = None
    if resume != "never":
        with tracking_errors("cannot look for earlier runs"):
            earlier = _newest(identity, parent_run_id) if resume == "auto" else _by_id(identity, resume)
    try:
        yield earlier
    finally:
        if earlier and earlier.spool:
            earlier.spool.close()


def _newest(identity: Identity, parent: str | None) -> EarlierRun | None:
    client = MlflowClient()
    runs = client.search_runs(
        [experiment_id_here()],
        f"tags.`{tag.FINGERPRINT}` = '{identity.fingerprint}'",
        order_by=["attributes.start_time DESC"],
    )
    for run in runs:
        if run.data.tags.get(tag.PARENT_RUN) != parent:
            continue
        # Once the work is finished, an older attempt is not resumed.
        if run.info.status == "FINISHED":
            return EarlierRun(run, None) if parent else None
        if is_still_alive(client, run):
            log.warning(
                "the run %s (%s) is doing the same work on %s; starting another one",
                run.info.run_id,
                run.info.run_name,
                run.data.tags.get(tag.HOST),
            )
            continue
        try:
            return reopen(client, run)
        except SpoolBusyError:
            log.warning("another process is resuming the run %s; starting a new one", run.info.run_id)
    return None


def _by_id(identity: Identity, run_id: str) -> EarlierRun:
    client = MlflowClient()
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        raise _refusal(f"there is no run {run_id!r}", "hpt runs lists those that can be resumed") from error
    there = run.data.tags.get(tag.IDENTITY)
    if there is None:
        raise _refusal(f"{run_id} is not the run of a stage that can be resumed (pretrain, adapt, main, study)")
    try:
        different = differences(json.loads(identity.text), json.loads(there))
    except ValueError as error:
        raise _refusal(f"the tag {tag.IDENTITY} of {run_id} is damaged", "start anew with resume=never") from error
    if different:
        raise _refusal(f"{run_id} did other work", f"here {', '.join(different)}")
    if run.info.status == "FINISHED":
        raise _refusal(f"{run_id} is finished", f"its model is {run.data.tags.get(tag.MODEL)}")
    if is_still_alive(client, run):
        raise _refusal(f"{run_id} is still running on {run.data.tags.get(tag.HOST)}")
    return reopen(client, run)


def _refusal(problem: str, remedy: str = "") -> HptError:
    return HptError(problem, remedy, setting="resume")


def reopen(client: MlflowClient, run: Run, even_if_finished: bool = False) -> EarlierRun:
    """Lock a run for this process, and deliver what it left behind.

    Raises:
        SpoolBusyError: another process works on it.
        HptError: what it left behind cannot be delivered.
    """
    owner = owner_here(run)
    spool = Spool.open(spool_folder(run.info.run_id), owner)
    _, left, why = drain(spool, owner, DRAIN_SECONDS)
    if left:
        spool.close()
        problem = f"the run {run.info.run_id} cannot be resumed: {left} entries wait in {spool.folder} ({why})"
        raise HptError(problem, "see hpt sync, or use resume=never")
    run = client.get_run(run.info.run_id)
    # It was finished, only MLflow did not know it yet.
    if run.info.status == "FINISHED" and not even_if_finished:
        spool.close()
        return EarlierRun(run, None)
    return EarlierRun(run, spool)


def owner_here(run: Run) -> Owner:
    """This process as the owner of a run's spool."""
    return Owner(
        run.info.run_id,
        run.info.experiment_id,
        run.info.run_name or "",
        mlflow.get_tracking_uri(),
        mlflow.get_registry_uri(),
        os.getpid(),
        socket.gethostname(),
    )
