"""Delivering what trainings that are gone have left in their spools."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from hpt_mlflow.tracking.delivery.courier import Courier
from hpt_mlflow.tracking.delivery.entries import Delivery, connect_to
from hpt_mlflow.tracking.delivery.spool import Owner, Spool, SpoolBusyError, spool_root


@dataclass(frozen=True)
class Synced:
    """What came of a spool.

    Attributes:
        left: how many entries could not be delivered.
        why: the reason, where some are left or somebody else is at it.
    """

    folder: Path
    run: str
    delivered: int
    left: int
    why: str = ""


def sync_all(patience_seconds: float, model_name: str | None = None) -> list[Synced]:
    """Deliver every spool of this machine that nobody works on, and call the runs behind them by their true state.

    Args:
        model_name: registered model that gets waiting versions, in place of the one that they were made for.
    """
    folders = sorted(folder for folder in spool_root().glob("*") if folder.is_dir())
    return [sync(folder, patience_seconds, model_name=model_name) for folder in folders]


def sync(folder: Path, patience_seconds: float, lock_seconds: float = 0.0, model_name: str | None = None) -> Synced:
    """Deliver one spool.

    Args:
        lock_seconds: how long to wait for a process that is just ending.
        model_name: see `sync_all`.
    """
    try:
        spool = Spool.open(folder, wait_seconds=lock_seconds)
    except SpoolBusyError:
        return Synced(folder, folder.name, 0, 0, "its process is at work and delivers by itself")
    owner = spool.owner
    if owner is None:
        left = len(spool.entries())
        spool.close()
        return Synced(folder, folder.name, 0, left, "its run.json is missing or damaged" if left else "")
    connect_to(owner.tracking_uri, owner.registry_uri)
    return deliver_rest(spool, owner, patience_seconds, model_name)


def deliver_rest(spool: Spool, owner: Owner, patience_seconds: float, model_name: str | None = None) -> Synced:
    """Deliver what is in an open spool, mark its run KILLED if it never said how it ended, and close it."""
    delivery = Delivery(owner.run_id, owner.experiment_id, model_name)
    waiting = spool.entries()
    if not any(entry.kind == "end" for entry in waiting) and _is_running(delivery):
        spool.add("end", {"status": "KILLED", "end_time": time.time_ns() // 1_000_000, "if_running": True})
        waiting = spool.entries()
    courier = Courier(spool, delivery, owner.name)
    left = courier.close(patience_seconds)
    why = courier.why(left) if left else ""
    spool.close()
    return Synced(spool.folder, f"{owner.name} ({owner.run_id})", len(waiting) - len(left), len(left), why)


def drain(spool: Spool, owner: Owner, patience_seconds: float) -> str:
    """Deliver what is in an open spool; gives why some of it could not be, or nothing."""
    courier = Courier(spool, Delivery(owner.run_id, owner.experiment_id), owner.name)
    left = courier.close(patience_seconds)
    return f"{len(left)} of its entries wait in {spool.folder}: {courier.why(left)}" if left else ""


def _is_running(delivery: Delivery) -> bool:
    """Whether the server believes that the run is going on, or cannot be asked."""
    try:
        return delivery.status() == "RUNNING"
    # The entry that says KILLED then waits with the others.
    except Exception:
        return True
