"""Delivering what dead trainings have left in their spools."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from hpt_mlflow.tracking.connection import use_servers
from hpt_mlflow.tracking.delivery.courier import Courier
from hpt_mlflow.tracking.delivery.run_client import RunClient
from hpt_mlflow.tracking.delivery.run_entries import End
from hpt_mlflow.tracking.delivery.spool import Owner, Spool, SpoolBusyError, spool_root


@dataclass(frozen=True)
class SyncResult:
    """What was delivered from a spool.

    Attributes:
        left: how many entries could not be delivered.
        why: the reason if some are left, or if another process works on the spool.
    """

    folder: Path
    run: str
    delivered: int
    left: int
    why: str = ""


def sync_all(patience_seconds: float, model_name: str | None = None) -> list[SyncResult]:
    """Deliver every spool of this machine that no process works on, and set the true status of its run.

    Args:
        model_name: registered model for waiting versions, in place of the one that they were made for.
    """
    folders = sorted(folder for folder in spool_root().glob("*") if folder.is_dir())
    return [sync(folder, patience_seconds, model_name=model_name) for folder in folders]


def sync(folder: Path, patience_seconds: float, lock_seconds: float = 0.0, model_name: str | None = None) -> SyncResult:
    """Deliver one spool.

    Args:
        lock_seconds: how long to wait for a process that is about to end.
        model_name: see `sync_all`.
    """
    try:
        spool = Spool.open(folder, wait_seconds=lock_seconds)
    except SpoolBusyError:
        return SyncResult(folder, folder.name, 0, 0, "its process is at work and delivers them itself")
    owner = spool.owner
    if owner is None:
        left = len(spool.entries())
        spool.close()
        return SyncResult(folder, folder.name, 0, left, "its run.json is missing or damaged" if left else "")
    use_servers(owner.tracking_uri, owner.registry_uri)
    if not any(entry.kind == End.kind for entry in spool.entries()):
        spool.add(End.kind, End("KILLED", time.time_ns() // 1_000_000, if_running=True).payload)
    delivered, left, why = drain(spool, owner, patience_seconds, model_name)
    spool.close()
    return SyncResult(folder, f"{owner.name} ({owner.run_id})", delivered, left, why)


def drain(spool: Spool, owner: Owner, patience_seconds: float, model_name: str | None = None) -> tuple[int, int, str]:
    """Deliver what is in an open spool; gives how many entries were delivered, how many are left, and why."""
    waiting = len(spool.entries())
    courier = Courier(spool, RunClient(owner.run_id, owner.experiment_id, model_name), owner.name)
    left = courier.flush(patience_seconds)
    why = courier.why(left) if left else ""
    courier.stop()
    return waiting - len(left), len(left), why
