"""Reaching the tracking server, with errors that a person can act on."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
from filelock import FileLock
from mlflow.exceptions import MlflowException
from sqlalchemy import NullPool, create_engine, make_url
from sqlalchemy.exc import SQLAlchemyError

from hpt_mlflow.errors import HptError, without_secrets
from hpt_mlflow.tracking.reasons import from_store, reason

RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
# Seconds until a database that does not answer counts as unreachable.
CONNECT_SECONDS = {name: {"connect_timeout": 10} for name in ("postgresql", "mysql")}


def prepare() -> None:
    """Set defaults for MLflow's client that the user's environment does not set."""
    # By default, MLflow retries for four minutes before it reports that a server does not answer.
    os.environ.setdefault(RETRIES, "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # It reports each retry.
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=UserWarning, module="mlflow")
    keep_secrets(mlflow.get_tracking_uri())


def keep_secrets(tracking_uri: str) -> None:
    """Keep MLflow from printing a link at the end of a run if the server's address holds a password."""
    if without_secrets(tracking_uri) != tracking_uri:
        os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"


def connect() -> str:
    """Check that the tracking server answers, before any long work; gives its address.

    Raises:
        HptError: it does not.
    """
    prepare()
    uri = mlflow.get_tracking_uri()
    try:
        check_database(uri)
        with _alone_with_database(uri):
            mlflow.search_experiments(max_results=1)
    # Databases raise their own errors, such as that of an interrupted migration.
    except Exception as error:
        raise HptError(f"tracking server {uri}: {reason(error)}") from error
    return uri


def check_database(uri: str) -> None:
    """Raise the database's error at once if it does not answer: MLflow would retry for two minutes."""
    url = make_url(uri) if "://" in uri else None
    if url is None or url.get_backend_name() not in CONNECT_SECONDS:
        return
    engine = create_engine(url, connect_args=CONNECT_SECONDS[url.get_backend_name()], poolclass=NullPool)
    engine.connect().close()


@contextmanager
def _alone_with_database(uri: str) -> Iterator[None]:
    """Let one process at a time open a sqlite file: MLflow creates its tables at the first call."""
    file = make_url(uri).database if uri.startswith("sqlite:") else None
    folder = Path(file).parent if file else None
    if not file or not folder or not os.access(folder, os.W_OK):
        yield
        return
    with FileLock(folder / f".{Path(file).name}.lock"):
        yield


def use_servers(tracking_uri: str, registry_uri: str) -> None:
    """Use these servers from now on."""
    mlflow.set_tracking_uri(tracking_uri)
    mlflow.set_registry_uri(registry_uri)
    keep_secrets(tracking_uri)


def retries() -> int:
    """How often MLflow's client repeats a call."""
    return int(os.environ.get(RETRIES) or 0)


@contextmanager
def without_retries() -> Iterator[None]:
    """Let MLflow's client send the calls of the block once.

    By itself it sends those that create something again if there is no reply: then it may be there twice.
    """
    before = os.environ.get(RETRIES)
    os.environ[RETRIES] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[RETRIES]
        else:
            os.environ[RETRIES] = before


@contextmanager
def tracking_errors(subject: str) -> Iterator[None]:
    """Turn what MLflow, databases and object stores raise into one line about `subject`."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, (MlflowException, SQLAlchemyError, OSError)) and not from_store(error):
            raise
        raise HptError(f"{subject}: {reason(error)}") from error
