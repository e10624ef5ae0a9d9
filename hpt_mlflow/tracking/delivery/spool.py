"""What a run still has to send to MLflow, in order, on the local disk: it survives the process and server outages.

A spool is a folder named after its run. An entry is a JSON file, written last, and a folder if it has files. Whoever
works on a spool holds its lock.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from filelock import FileLock, Timeout

from hpt_mlflow.errors import HptError, one_line
from hpt_mlflow.files import make_cache_folder, replacing
from hpt_mlflow.signals import is_running

OWNER_FILE = "run.json"
LOCK_FILE = "lock"
# How long the processes that a killed training leaves behind take to notice.
LOCK_SECONDS = 30.0


class SpoolBusyError(HptError):
    """Another process works on the spool."""


class SpoolError(HptError):
    """An entry with files could not be written."""


@dataclass
class Entry:
    """One thing to send to MLflow.

    Attributes:
        kind, payload: see `delivery.entries`; the payload is JSON.
        folder: its files, if it has any.
        unwritten: why it is in memory only and could not be written to disk; empty if it is on disk.
    """

    number: int
    kind: str
    payload: dict[str, Any]
    folder: Path | None = None
    unwritten: str = ""


@dataclass(frozen=True)
class Owner:
    """Whose spool it is, and who writes it.

    Attributes:
        tracking_uri, registry_uri: the servers of the run.
        pid, host: the process that writes it.
    """

    run_id: str
    experiment_id: str
    name: str
    tracking_uri: str
    registry_uri: str
    pid: int
    host: str


PRIVATE, PRIVATE_FILE = 0o700, 0o600


class Spool:
    """An open spool, locked by this process."""

    def __init__(self, folder: Path, lock: FileLock, owner: Owner | None) -> None:
        self.folder = folder
        self.owner = owner
        self._lock = lock
        self._remove_halves()
        self._next = max((entry.number for entry in self.entries()), default=-1) + 1

    @staticmethod
    def open(folder: Path, owner: Owner | None = None, wait_seconds: float = LOCK_SECONDS) -> Spool:
        """Lock a spool; if an owner is given, create it.

        Args:
            owner: who works on it from now on; None to read who did.
            wait_seconds: how long to wait for child processes that a dead owner has left running.

        Raises:
            SpoolBusyError: another process works on it.
            HptError: the folder cannot be created.
        """
        try:
            if owner is not None:
                make_cache_folder(folder.parent)
                folder.mkdir(mode=PRIVATE, exist_ok=True)
                # The address of the server may hold a password.
                with suppress(OSError):
                    folder.chmod(PRIVATE)
            lock = FileLock(folder / LOCK_FILE, thread_local=False)
            lock.acquire(timeout=wait_seconds if not _is_at_work(read_owner(folder)) else 0)
            if owner is not None:
                write_in_one_step(folder / OWNER_FILE, json.dumps(vars(owner)))
        except Timeout as error:
            raise SpoolBusyError(f"{folder}: another process works on it") from error
        except OSError as error:
            raise HptError(
                f"cannot write to {folder} ({one_line(error)})", "set HPT_SPOOL to a folder that can be written"
            ) from error
        return Spool(folder, lock, owner or read_owner(folder))

    def add(self, kind: str, payload: dict[str, Any], fill: Callable[[Path], None] | None = None) -> Entry:
        """Append an entry. One without files that cannot be written to disk is kept in memory.

        Args:
            fill: writes its files into a folder.

        Raises:
            SpoolError: the files could not be written.
        """
        entry = Entry(self._next, kind, payload, self.folder / f"{self._next:09d}" if fill else None)
        self._next += 1
        try:
            if fill and entry.folder:
                entry.folder.mkdir()
                fill(entry.folder)
            write_in_one_step(self._file(entry), json.dumps({"kind": kind, "payload": payload}))
        # safetensors raises its own errors for a full disk.
        except Exception as error:
            self.remove(entry)
            if fill:
                raise SpoolError(one_line(error)) from error
            entry.unwritten = one_line(error)
        return entry

    def entries(self) -> list[Entry]:
        """The entries on disk, oldest first, without those that were not written to the end."""
        entries = []
        for file in sorted(self.folder.glob("[0-9]*.json")):
            try:
                written = json.loads(file.read_text())
                folder = file.with_suffix("")
                files = folder if folder.is_dir() else None
                entries.append(Entry(int(file.stem), written["kind"], written["payload"], files))
            except (OSError, ValueError, KeyError, TypeError):
                continue
        return entries

    def remove(self, entry: Entry) -> None:
        """Delete an entry."""
        with suppress(OSError):
            self._file(entry).unlink(missing_ok=True)
        if entry.folder:
            shutil.rmtree(entry.folder, ignore_errors=True)

    def close(self) -> None:
        """Release the lock, and delete the folder if it has no entries. Closing twice does no harm."""
        if not self._lock.is_locked:
            return
        if not self.entries():
            shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.release()

    def _file(self, entry: Entry) -> Path:
        return self.folder / f"{entry.number:09d}.json"

    def _remove_halves(self) -> None:
        """Delete what a killed process was writing or deleting."""
        whole = {entry.number for entry in self.entries()}
        for path in self.folder.iterdir():
            if path.is_dir() and not (path.name.isdigit() and int(path.name) in whole):
                shutil.rmtree(path, ignore_errors=True)


def spool_root() -> Path:
    """The folder of all spools: HPT_SPOOL, or one in the user's application data."""
    return Path(os.environ.get("HPT_SPOOL") or Path(click.get_app_dir("hpt_mlflow")) / "spool").expanduser()


def spool_folder(run_id: str) -> Path:
    """The spool of a run."""
    return spool_root() / run_id


def read_owner(folder: Path) -> Owner | None:
    """Whose spool it is; None if that cannot be read."""
    try:
        return Owner(**json.loads((folder / OWNER_FILE).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def is_at_work(folder: Path) -> bool:
    """Whether a process of this machine works on a spool: it runs, and the lock is held (process ids are reused)."""
    if not _is_at_work(read_owner(folder)):
        return False
    lock = FileLock(folder / LOCK_FILE, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


def write_in_one_step(file: Path, text: str) -> None:
    """Write a file that only this user can read, whole or not at all."""
    with replacing(file, PRIVATE_FILE) as temporary:
        temporary.write_text(text)


def _is_at_work(owner: Owner | None) -> bool:
    return owner is not None and owner.host == socket.gethostname() and is_running(owner.pid)
