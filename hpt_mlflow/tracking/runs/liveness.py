"""Whether a process is working on a run: by its spool on this machine, by its heartbeat elsewhere."""

from __future__ import annotations

import logging
import socket
import time

from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from hpt_mlflow.tracking import tags as tag
from hpt_mlflow.tracking.delivery.spool import is_at_work, read_owner, spool_folder

# A run without a heartbeat for this long has lost its process.
STALE_SECONDS = 90.0

log = logging.getLogger("hpt_mlflow")


def is_alive(run: Run) -> bool:
    """Whether a process works on a run: that of its spool if this machine has it, else whoever sends its heartbeat."""
    if run.info.status != "RUNNING":
        return False
    if _has_spool_here(run):
        return is_at_work(spool_folder(run.info.run_id))
    return heartbeat_age_seconds(run) < STALE_SECONDS


def is_still_alive(client: MlflowClient, run: Run) -> bool:
    """As `is_alive`; waits for the next heartbeat of a run of another machine, which may just have disappeared."""
    if not is_alive(run):
        return False
    if _has_spool_here(run):
        return True
    last = run.data.tags.get(tag.HEARTBEAT)
    log.warning("the run %s was active on %s a moment ago; waiting to see", run.info.run_id, run.data.tags[tag.HOST])
    while heartbeat_age_seconds(run) < STALE_SECONDS:
        time.sleep(min(5.0, STALE_SECONDS))
        run = client.get_run(run.info.run_id)
        if run.data.tags.get(tag.HEARTBEAT) != last or run.info.status != "RUNNING":
            return run.info.status == "RUNNING"
    return False


def heartbeat_age_seconds(run: Run) -> float:
    """Seconds since the last heartbeat of a run."""
    return time.time() - float(run.data.tags.get(tag.HEARTBEAT) or 0)


def _has_spool_here(run: Run) -> bool:
    owner = read_owner(spool_folder(run.info.run_id))
    return owner is not None and owner.host == socket.gethostname()
