"""Results that are cached between runs, by a key of what they were computed from."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import click
from filelock import FileLock, Timeout

from hpt_mlflow.files import make_cache_folder, replacing

# An unfinished file of `replacing` is abandoned if nothing was added to it for this long.
WRITING_SECONDS = 3600.0

log = logging.getLogger("hpt_mlflow")

T = TypeVar("T")


def cache_folder() -> Path:
    """The folder of cached results: HPT_CACHE, or the user's folder for applications."""
    return Path(os.environ.get("HPT_CACHE") or click.get_app_dir("hpt_mlflow")).expanduser()


def keep(file: Path, write: Callable[[Path], object]) -> None:
    """Write a file in one step, so that nobody reads half of it. A cache that cannot be written is not an error.

    Args:
        write: writes the file at the given path.
    """
    # safetensors has its own error for a full disk.
    with suppress(Exception):
        _make_parent(file)
        with replacing(file) as temporary:
            write(temporary)


def read_json(file: Path, parse: Callable[[Any], T]) -> T | None:
    """What `keep_json` kept in a file, as `parse` reads it; None if it is missing or damaged."""
    try:
        return parse(json.loads(file.read_text()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def keep_json(file: Path, values: Any) -> None:
    """Keep values as JSON, as `keep` does."""
    keep(file, lambda temporary: temporary.write_text(json.dumps(values)))


def _make_parent(file: Path) -> None:
    if cache_folder() in file.parents:
        make_cache_folder(cache_folder())
    file.parent.mkdir(parents=True, exist_ok=True)


def limit(folder: Path, most_bytes: float) -> None:
    """Remove the least recently used files until the rest take at most `most_bytes`.

    Files that are being written count, but stay; what a process left that was killed while writing is removed like any
    other file.
    """
    files = []
    for file in folder.glob("*"):
        with suppress(OSError):
            status = file.stat()
            if stat.S_ISREG(status.st_mode):
                files.append((status.st_mtime, status.st_size, file))
    total = sum(size for _, size, _ in files)
    for used, size, file in sorted(files, key=lambda entry: entry[0]):
        if total <= most_bytes:
            break
        if file.name.startswith(".") and time.time() - used < WRITING_SECONDS:
            continue
        # Windows does not remove a file that is open or mapped. Elsewhere, processes that have it open keep it.
        with suppress(OSError):
            file.unlink(missing_ok=True)
            total -= size


def check_room(folder: Path, size: float) -> None:
    """Raise OSError if `size` more bytes would leave too little of the disk: 1 GiB, or 5% of a small one."""
    disk = shutil.disk_usage(folder)
    if disk.free - size < min(disk.total // 20, 1 << 30):
        raise OSError(errno.ENOSPC, "too little of the disk is free")


def locked(file: Path) -> FileLock | None:
    """Wait for a lock and hold it alone; None if files cannot be locked there.

    It is free again when it is released, or when its process dies.
    """
    try:
        _make_parent(file)
        lock = FileLock(file)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.info("waiting for another process that fills the cache in %s", file.parent.parent)
            lock.acquire()
    except (OSError, NotImplementedError):
        return None
    return lock
