"""Reaching the tracking server, with errors that a person can act on."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import mlflow
from mlflow.exceptions import MlflowException

from hpt_mlflow.errors import HptError, one_line


def prepare() -> None:
    """Set what MLflow's client does where nothing else is asked for."""
    # MLflow's own default is to try for four minutes before it says that nobody is there.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=UserWarning, module="mlflow")


def connect() -> None:
    """Check that the tracking server answers, before any long work.

    Raises:
        HptError: it does not.
    """
    prepare()
    with tracking_errors(f"tracking server {mlflow.get_tracking_uri()}"):
        mlflow.search_experiments(max_results=1)


@contextmanager
def tracking_errors(subject: str) -> Iterator[None]:
    """Turn what MLflow raises into one line about `subject`."""
    try:
        yield
    except HptError:
        raise
    except (MlflowException, OSError) as error:
        raise HptError(f"{subject}: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """What to tell of an error, without the internals of connection pools."""
    text = one_line(error)
    if "Max retries exceeded" in text or "Connection refused" in text:
        return "nobody answers there; check MLFLOW_TRACKING_URI, or start it with mlflow server"
    return text
