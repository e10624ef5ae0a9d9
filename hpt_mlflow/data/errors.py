"""Errors about the setting `data`, and why single images cannot be read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hpt_mlflow.errors import HptError, one_line, printable


def data_error(problem: str, remedy: str = "") -> HptError:
    """An error about the dataset that the user named."""
    return HptError(problem, remedy, setting="data")


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Turn an OSError of the block into an error that says what cannot be read, and why."""
    try:
        yield
    except OSError as error:
        raise data_error(f"cannot read {what}: {error.strerror}") from error


class UnreadableImageError(Exception):
    """Why one image could not be decoded."""


@contextmanager
def explaining() -> Iterator[None]:
    """Turn any error of the block into an `UnreadableImageError`: decoders raise almost anything on damaged data."""
    try:
        yield
    except UnreadableImageError:
        raise
    except Exception as error:
        raise UnreadableImageError(f"{type(error).__name__}: {printable(one_line(error))}") from error
