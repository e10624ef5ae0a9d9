"""The runs of a search: the one around it, which one process leads, and those of its trials."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from hpt_mlflow.errors import HptError
from hpt_mlflow.signals import end_with_parent, is_running, termination_as_interrupt
from hpt_mlflow.tracking import tags as tag
from hpt_mlflow.tracking.addresses import is_version, split_version
from hpt_mlflow.tracking.connection import tracking_errors
from hpt_mlflow.tracking.delivery.spool import SpoolBusyError
from hpt_mlflow.tracking.runs.liveness import STALE_SECONDS, heartbeat_age_seconds, is_alive, is_still_alive
from hpt_mlflow.tracking.runs.resume import EarlierRun, reopen
from hpt_mlflow.tracking.runs.start import mark_as_attempt
from hpt_mlflow.tuning.records import FAILED, LOST

# How long to wait for the guard of a killed trial before its run is marked FAILED.
GUARD_SECONDS = 60.0


def worker_name() -> str:
    """This process, named so that others can check whether it still runs."""
    return f"{socket.gethostname()}:{os.getpid()}"


def is_worked_on(run_id: str, worker: str, age_seconds: float) -> bool:
    """Whether a process works on a trial.

    Args:
        run_id: its run; empty if it has none yet.
        worker: `worker_name` of the process that took it, or empty.
        age_seconds: since it was taken.
    """
    if run_id:
        try:
            return is_alive(MlflowClient().get_run(run_id))
        except MlflowException as error:
            # A server that is unreachable for a moment says nothing about the trial.
            return error.error_code != "RESOURCE_DOES_NOT_EXIST"
    host, _, pid = worker.rpartition(":")
    if host == socket.gethostname():
        return is_running(int(pid))
    return age_seconds < STALE_SECONDS


@contextmanager
def led_run(run_id: str, study: str) -> Iterator[EarlierRun | None]:
    """The run around a search, reopened to resume it; None if another process leads it.

    Args:
        study: the search's name.

    Raises:
        HptError: the server does not know the run.
    """
    client, led = MlflowClient(), None
    with tracking_errors(f"cannot resume the study {study}"):
        try:
            run = client.get_run(run_id)
        except MlflowException as error:
            raise HptError(
                f"{study!r} has the run {run_id}, which this tracking server does not know",
                "set MLFLOW_TRACKING_URI to its server, or name another study",
                setting="study",
            ) from error
        if not is_still_alive(client, run):
            with suppress(SpoolBusyError):
                led = reopen(client, run, even_if_finished=True)
    try:
        yield led
    finally:
        if led and led.spool:
            led.spool.close()


@contextmanager
def joined_run(run_id: str) -> Iterator[None]:
    """Join a run that another process leads; SIGTERM acts like Ctrl-C in the block.

    The run that `mlflow run` made for this process becomes a note below that one.
    """
    client, made = MlflowClient(), os.environ.pop("MLFLOW_RUN_ID", "")
    with ExitStack() as stack:
        stack.enter_context(termination_as_interrupt())
        if made and not os.environ.get("HPT_DETACHED"):
            stack.enter_context(end_with_parent())
        if made and made != run_id:
            mark_as_attempt(client, made, client.get_run(run_id))
        try:
            yield
        except KeyboardInterrupt:
            # If `mlflow run` is gone, nothing else does.
            with suppress(MlflowException):
                if made and made != run_id:
                    client.set_terminated(made, "KILLED")
            raise


def is_abandoned(run_id: str) -> bool:
    """Whether the run around a search is unfinished, and no process leads it."""
    with tracking_errors("cannot read the run of the study"):
        run = MlflowClient().get_run(run_id)
        return run.info.status != "FINISHED" and not is_alive(run)


def was_made_in(version: str, run_id: str) -> bool:
    """Whether a registered version was made by a stage nested in a run."""
    if not is_version(version):
        return False
    client = MlflowClient()
    with suppress(MlflowException):
        made_by = client.get_model_version(*split_version(version)).run_id or ""
        return bool(made_by) and client.get_run(made_by).data.tags.get(tag.PARENT_RUN) == run_id
    return False


class LostRuns:
    """Runs of trials whose workers were killed: they are marked FAILED once their guards have set their status."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}

    def add(self, run_id: str) -> None:
        """Add a run."""
        if run_id:
            self._since[run_id] = time.monotonic()

    def settle(self, wait: bool = False) -> None:
        """Mark FAILED the runs whose guards are done.

        Args:
            wait: until all are done, but at most two minutes.
        """
        client, end = MlflowClient(), time.monotonic() + 2 * GUARD_SECONDS
        while self._since:
            for run_id, since in list(self._since.items()):
                # The server may be unreachable for a moment.
                with suppress(MlflowException):
                    run = client.get_run(run_id)
                    guarded = run.info.status == "RUNNING" and heartbeat_age_seconds(run) < STALE_SECONDS
                    if guarded and time.monotonic() - since < GUARD_SECONDS:
                        continue
                    client.set_tag(run_id, tag.TRIAL_STATE, FAILED)
                    client.set_tag(run_id, tag.REASON, LOST)
                    client.set_terminated(run_id, "FAILED", run.info.end_time)
                    del self._since[run_id]
            if not wait or time.monotonic() > end:
                return
            time.sleep(1)
