"""Runs that the same command has started before: the one to go on with, the ones that wait to be continued."""

from __future__ import annotations

import json
import logging
import os
import socket
import time
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
from hpt_mlflow.tracking.delivery.spool import Owner, Spool, SpoolBusyError, is_at_work, read_owner, spool_folder
from hpt_mlflow.tracking.delivery.sync import drain
from hpt_mlflow.tracking.identity import Identity
from hpt_mlflow.tracking.runs.nesting import experiment_id_here

# A run without a heartbeat for so long is not being worked on.
STALE_SECONDS = 90.0
DRAIN_SECONDS = 60.0

log = logging.getLogger("hpt_mlflow")


@dataclass(frozen=True)
class Earlier:
    """A run that did the same work before.

    Attributes:
        run: as the server knows it.
        spool: open and empty, where the run is to be continued; None where it is finished.
    """

    run: Run
    spool: Spool | None

    @property
    def finished(self) -> bool:
        """Whether there is nothing to continue."""
        return self.spool is None


@contextmanager
def earlier_run(identity: Identity, resume: str, parent_run_id: str | None) -> Iterator[Earlier | None]:
    """The run to go on with, ours alone for the block.

    Args:
        parent_run_id: the run that it is nested in.
        resume: `auto`: the newest unfinished run of the same work, under the same parent run; inside a parent run, a
            finished one as well. `never`: none. Else the id of a run.

    Raises:
        HptError: the run named by `resume` cannot be continued; or what an earlier run left behind cannot be delivered.
    """
    found = None
    if resume != "never":
        with tracking_errors("cannot look for earlier runs"):
            found = _find(identity, parent_run_id) if resume == "auto" else _named(identity, resume)
    try:
        yield found
    finally:
        if found and found.spool:
            found.spool.close()


def is_alive(run: Run) -> bool:
    """Whether some process works on a run: by its process where this machine has its spool, else by its heartbeat."""
    if run.info.status != "RUNNING":
        return False
    if _has_spool_here(run):
        return is_at_work(spool_folder(run.info.run_id))
    return heartbeat_age_seconds(run) < STALE_SECONDS


def heartbeat_age_seconds(run: Run) -> float:
    """Seconds since a process last said that it works on a run."""
    return time.time() - float(run.data.tags.get(tag.HEARTBEAT) or 0)


def _find(identity: Identity, parent: str | None) -> Earlier | None:
    client = MlflowClient()
    runs = client.search_runs(
        [experiment_id_here()],
        f"tags.`{tag.FINGERPRINT}` = '{identity.fingerprint}'",
        order_by=["attributes.start_time DESC"],
    )
    for run in runs:
        if run.data.tags.get(tag.PARENT_RUN) != parent:
            continue
        # What was done once is not taken up again from an older attempt.
        if run.info.status == "FINISHED":
            return Earlier(run, None) if parent else None
        if is_still_alive(client, run):
            log.warning(
                "the run %s (%s) does the same work on %s; another one is started beside it",
                run.info.run_id,
                run.info.run_name,
                run.data.tags.get(tag.HOST),
            )
            continue
        try:
            return take_up(client, run)
        except SpoolBusyError:
            log.warning("the run %s is being taken up by another process; a new one is started", run.info.run_id)
    return None


def _named(identity: Identity, run_id: str) -> Earlier:
    client = MlflowClient()
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        raise HptError(f"resume: there is no run {run_id!r}; hpt runs lists those that can be continued") from error
    theirs = run.data.tags.get(tag.IDENTITY)
    if theirs is None:
        raise HptError(f"resume: {run_id} is no run of a stage that goes on (pretrain, adapt, main, study)")
    try:
        there, here = json.loads(theirs), json.loads(identity.text)
    except ValueError as error:
        raise HptError(
            f"resume: the tag {tag.IDENTITY} of {run_id} is damaged; start anew with resume=never"
        ) from error
    if different := differences(here, there):
        raise HptError(f"resume: {run_id} did other work; here {', '.join(different)}")
    if run.info.status == "FINISHED":
        raise HptError(f"resume: {run_id} is finished; its model is {run.data.tags.get(tag.MODEL)}")
    if is_still_alive(client, run):
        raise HptError(f"resume: {run_id} is being worked on, on {run.data.tags.get(tag.HOST)}")
    return take_up(client, run)


def is_still_alive(client: MlflowClient, run: Run) -> bool:
    """As `is_alive`; a run without a spool here is watched for a while: machines are taken away without a word."""
    if not is_alive(run):
        return False
    if _has_spool_here(run):
        return True
    last = run.data.tags.get(tag.HEARTBEAT)
    log.warning("the run %s was at work on %s a moment ago; waiting to see", run.info.run_id, run.data.tags[tag.HOST])
    while heartbeat_age_seconds(run) < STALE_SECONDS:
        time.sleep(min(5.0, STALE_SECONDS))
        run = client.get_run(run.info.run_id)
        if run.data.tags.get(tag.HEARTBEAT) != last or run.info.status != "RUNNING":
            return run.info.status == "RUNNING"
    return False


def take_up(client: MlflowClient, run: Run, finished_too: bool = False) -> Earlier:
    """Make a run ours, and deliver what it left behind.

    Args:
        finished_too: whether a finished run is to be continued, and not only to be told of.
    """
    owner = owner_here(run)
    spool = Spool.open(spool_folder(run.info.run_id), owner)
    if left := drain(spool, owner, DRAIN_SECONDS):
        spool.close()
        raise HptError(f"the run {run.info.run_id} cannot go on: {left}; see hpt sync, or start anew with resume=never")
    run = client.get_run(run.info.run_id)
    # It had been done, and only had to be told.
    if run.info.status == "FINISHED" and not finished_too:
        spool.close()
        return Earlier(run, None)
    return Earlier(run, spool)


def _has_spool_here(run: Run) -> bool:
    owner = read_owner(spool_folder(run.info.run_id))
    return owner is not None and owner.host == socket.gethostname()


def owner_here(run: Run) -> Owner:
    """This process as the one that works on a run."""
    return Owner(
        run.info.run_id,
        run.info.experiment_id,
        run.info.run_name or "",
        mlflow.get_tracking_uri(),
        mlflow.get_registry_uri(),
        os.getpid(),
        socket.gethostname(),
    )
