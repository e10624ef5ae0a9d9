"""Small results kept between runs, by a key that names what they were computed from."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import click

from hpt_mlflow.files import replacing


def cache_folder() -> Path:
    """Where results are kept between runs: HPT_CACHE, or the user's folder for applications."""
    return Path(os.environ.get("HPT_CACHE") or click.get_app_dir("hpt_mlflow"))


def keep(file: Path, write: Callable[[Path], object]) -> None:
    """Write a file in one step, so that nobody reads half of it. A cache that cannot be written is not an error.

    Args:
        write: writes the file at the path that it is given.
    """
    # safetensors has an error of its own for a full disk.
    with suppress(Exception):
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as temporary:
            write(temporary)


def limit(folder: Path, most_bytes: float) -> None:
    """Remove the files that were used longest ago, until the rest take no more than `most_bytes`."""
    files = []
    for file in folder.glob("*"):
        with suppress(OSError):
            status = file.stat()
            files.append((status.st_mtime, status.st_size, file))
    total = sum(size for _, size, _ in files)
    for _, size, file in sorted(files, key=lambda entry: entry[0]):
        if total <= most_bytes:
            break
        with suppress(OSError):
            file.unlink()
        total -= size
