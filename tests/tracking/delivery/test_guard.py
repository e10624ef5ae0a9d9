import os
import signal
import subprocess
import sys
import threading

import mlflow
import pytest
from mlflow.tracking import MlflowClient
from processes import wait_for
from stored import status, tags

from hpt_mlflow.tracking.delivery import guard as guard_module
from hpt_mlflow.tracking.delivery.guard import Guard, finish, restore_killed
from hpt_mlflow.tracking.delivery.spool import Owner, Spool, spool_folder

SECONDS = 60.0
# A training with a guard, which is killed while it waits for more to do.
TRAINING = """
import os, socket, sys
from hpt_mlflow.tracking.delivery.guard import Guard
from hpt_mlflow.tracking.delivery.spool import Owner, Spool, spool_folder
run_id, uri = sys.argv[1:]
spool = Spool.open(spool_folder(run_id), Owner(run_id, "0", "cats", uri, uri, os.getpid(), socket.gethostname()))
spool.add("tags", {"a": "b"})
guard = Guard(spool.folder, "")
print("open", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def uri(store, monkeypatch):
    # What the guard sets in this process is not set any more for the tests that follow.
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", store)
    for name in ("MAX_RETRIES", "TIMEOUT"):
        monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_{name}", "2")
    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    yield store
    mlflow.set_registry_uri("")


@pytest.fixture
def run_id(uri):
    return MlflowClient().create_run("0").info.run_id


@pytest.fixture
def left_behind(run_id, uri):
    """The spool of a run whose process is gone."""
    spool = Spool.open(spool_folder(run_id), Owner(run_id, "0", "cats", uri, uri, 0, "here"))
    spool.add("tags", {"a": "b"})
    spool.close()
    return spool.folder


@pytest.fixture
def guard(left_behind):
    started = Guard(left_behind, "")
    yield started
    started._process.kill()
    started._process.wait()


@pytest.mark.parametrize("status_sent", ["FINISHED", "FAILED", "KILLED"])
def test_after_a_word_nothing_is_left_to_do(left_behind, run_id, status_sent):
    before = sorted(left_behind.iterdir())
    finish(left_behind, "", status_sent)
    assert sorted(left_behind.iterdir()) == before
    assert status(run_id) == "RUNNING"


@pytest.mark.parametrize("status_sent", ["FINISHED", "FAILED"])
def test_after_an_end_of_its_own_the_run_of_mlflow_run_stays_as_it_is(left_behind, run_id, status_sent):
    MlflowClient().set_terminated(run_id, "FAILED")
    finish(left_behind, run_id, status_sent)
    assert status(run_id) == "FAILED"


def test_without_a_word_the_rest_is_delivered_and_the_run_marked_killed(left_behind, run_id):
    finish(left_behind, "", "")
    assert tags(run_id)["a"] == "b"
    assert status(run_id) == "KILLED"
    assert not left_behind.exists()


@pytest.mark.parametrize("status_sent", ["", "KILLED"])
def test_what_mlflow_run_calls_failed_is_called_killed_in_the_end(left_behind, run_id, monkeypatch, status_sent):
    monkeypatch.setattr(guard_module, "POLL_SECONDS", 0.02)
    if status_sent:
        MlflowClient().set_terminated(run_id, status_sent)
    watching = threading.Thread(target=finish, args=(left_behind, run_id, status_sent))
    watching.start()
    while status(run_id) != "KILLED":
        assert watching.is_alive()
    MlflowClient().set_terminated(run_id, "FAILED", 12345)
    watching.join(SECONDS)
    info = MlflowClient().get_run(run_id).info
    assert (info.status, info.end_time) == ("KILLED", 12345)


@pytest.mark.parametrize("state", ["KILLED", "FINISHED"])
def test_the_last_word_is_given_up_where_nobody_says_failed(run_id, monkeypatch, state):
    monkeypatch.setattr(guard_module, "PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr(guard_module, "POLL_SECONDS", 0.02)
    MlflowClient().set_terminated(run_id, state, 12345)
    restore_killed(run_id)
    info = MlflowClient().get_run(run_id).info
    assert (info.status, info.end_time) == (state, 12345)


def test_the_process_ends_with_a_word_and_does_nothing(guard, left_behind, run_id):
    before = sorted(left_behind.iterdir())
    guard.send("FINISHED")
    assert guard._process.wait(SECONDS) == 0
    assert sorted(left_behind.iterdir()) == before
    assert status(run_id) == "RUNNING"


def test_the_process_outlives_what_kills_the_group_of_its_training(guard):
    assert os.getpgid(guard._process.pid) != os.getpgid(0)


def test_a_guard_that_cannot_be_started_says_why_and_takes_every_word(left_behind, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/no/python")
    missing = Guard(left_behind, "")
    assert missing.missing.startswith("no process guards this run: cannot start another process (")
    assert "No such file" in missing.missing
    assert "hpt sync" in missing.missing
    assert "\n" not in missing.missing
    for status_sent in ("FINISHED", "KILLED"):
        missing.send(status_sent)


@pytest.mark.parametrize("status_sent", ["FINISHED", "KILLED"])
def test_telling_a_guard_that_is_gone_is_no_error(guard, status_sent):
    guard._process.kill()
    guard._process.wait()
    guard.send(status_sent)


def test_a_training_that_is_killed_is_delivered_and_marked_killed(run_id, uri):
    training = subprocess.Popen(
        [sys.executable, "-c", TRAINING, run_id, uri],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert training.stdout.readline() == "open\n"
    os.killpg(training.pid, signal.SIGKILL)
    training.wait()
    wait_for(lambda: not spool_folder(run_id).exists())
    assert tags(run_id)["a"] == "b"
    assert status(run_id) == "KILLED"
    assert not spool_folder(run_id).exists()
