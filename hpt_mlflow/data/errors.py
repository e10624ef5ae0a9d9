"""Errors about the setting `data`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hpt_mlflow.errors import HptError


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
