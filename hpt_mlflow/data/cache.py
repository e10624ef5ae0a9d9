"""Results kept between runs, by a key that names what they were computed from."""

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

# A file that `replacing` has not finished is not written any more if nothing was added for so long.
WRITING_SECONDS = 3600.0

log = logging.getLogger("hpt_mlflow")

T = TypeVar("T")


def cache_folder() -> Path:
    """Where results are kept between runs: HPT_CACHE, or the user's folder for applications."""
    return Path(os.environ.get("HPT_CACHE") or click.get_app_dir("hpt_mlflow")).expanduser()


def keep(file: Path, write: Callable[[Path], object]) -> None:
    """Write a file in one step, so that nobody reads half of it. A cache that cannot be written is not an error.

    Args:
        write: writes the file at the path that it is given.
    """
    # safetensors has an error of its own for a full disk.
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
    """Remove the files that were used longest ago, until the rest take no more than `most_bytes`.

    What somebody writes at the moment is counted, but stays; what a process left that was killed while it wrote goes
    like any other file.
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
        # Windows removes no file that is open or mapped somewhere. Elsewhere, who has it open keeps it.
        with suppress(OSError):
            file.unlink(missing_ok=True)
            total -= size


def check_room(folder: Path, size: float) -> None:
    """Raise OSError where so many bytes more would leave too little of the disk: 1 GiB, or 5 % of a small one."""
    disk = shutil.disk_usage(folder)
    if disk.free - size < min(disk.total // 20, 1 << 30):
        raise OSError(errno.ENOSPC, "too little of the disk is free")


def locked(file: Path) -> FileLock | None:
    """Hold a lock that no other process holds, and wait for it; None where files cannot be locked there.

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
