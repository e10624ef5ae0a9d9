"""A server or database that does not answer: one line, soon, and without its password."""

import socket
import stat
import time

import mlflow
import pytest

from hpt_mlflow.errors import HptError
from hpt_mlflow.tracking import connection
from hpt_mlflow.tracking.addresses import concrete_uri
from hpt_mlflow.tracking.connection import connect
from hpt_mlflow.tracking.delivery.spool import OWNER_FILE, Spool, spool_folder
from hpt_mlflow.tracking.models.store import check_may_register
from hpt_mlflow.tracking.runs.resume import owner_here


def refusal(uri):
    mlflow.set_tracking_uri(uri)
    try:
        with pytest.raises(HptError) as caught:
            connect()
    finally:
        mlflow.set_tracking_uri(None)
    text = str(caught.value)
    assert "\n" not in text
    assert "secret" not in text
    return text


@pytest.mark.parametrize("kind", ["http", "postgresql", "postgresql+psycopg"])
def test_nobody_there_is_told_without_the_password(unused_port, kind):
    started = time.monotonic()
    text = refusal(f"{kind}://me:secret@127.0.0.1:{unused_port}/mlflow")
    assert text.startswith(f"tracking server {kind}://me:***@127.0.0.1:{unused_port}")
    # MLflow would try a database for 105 seconds.
    assert time.monotonic() - started < 60


def test_a_database_that_takes_calls_and_does_not_answer_is_given_up(monkeypatch):
    monkeypatch.setitem(connection.CONNECT_SECONDS, "postgresql", {"connect_timeout": 2})
    with socket.create_server(("127.0.0.1", 0)) as silent:
        text = refusal(f"postgresql+psycopg://me:secret@127.0.0.1:{silent.getsockname()[1]}/mlflow")
    assert "timeout" in text


def test_nobody_else_can_read_which_server_a_spool_is_for(store):
    run = mlflow.start_run()
    mlflow.end_run()
    folder = spool_folder(run.info.run_id)
    folder.mkdir(parents=True, mode=0o755)
    spool = Spool.open(folder, owner_here(run))
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / OWNER_FILE).stat().st_mode) == 0o600
    spool.close()


@pytest.mark.parametrize("kind", ["http", "postgresql+psycopg"])
def test_a_registry_that_does_not_answer_is_told_soon_and_without_the_password(store, unused_port, monkeypatch, kind):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    mlflow.set_registry_uri(f"{kind}://me:secret@127.0.0.1:{unused_port}/mlflow")
    started = time.monotonic()
    with pytest.raises(
        HptError, match="^parent: cannot look for models:/hpt/1 in the registry .*nobody answers"
    ) as caught:
        concrete_uri("models:/hpt/1", "parent", "hpt")
    assert "secret" not in str(caught.value)
    assert time.monotonic() - started < 60


def test_a_registry_that_does_not_answer_before_a_training_may_answer_later(store, unused_port, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    mlflow.set_registry_uri(f"http://127.0.0.1:{unused_port}")
    check_may_register("hpt")
