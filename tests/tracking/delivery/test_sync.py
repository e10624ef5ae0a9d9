import os
import shutil
import socket

import mlflow
import pytest
from mlflow.tracking import MlflowClient
from stored import outage, status, tags

from hpt_mlflow.tracking.delivery.spool import Owner, Spool, read_owner, spool_folder, spool_root
from hpt_mlflow.tracking.delivery.sync import drain, sync, sync_all

SECONDS = 30.0


@pytest.fixture
def uri(store, monkeypatch):
    # `use_servers` must not affect later tests.
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", store)
    yield store
    mlflow.set_registry_uri("")


@pytest.fixture
def run_id(uri):
    return MlflowClient().create_run("0").info.run_id


def owner(run_id, uri):
    return Owner(run_id, "0", "cats", uri, uri, os.getpid(), socket.gethostname())


def leave(run_id, uri, *entries):
    """A spool that nobody works on any more."""
    spool = Spool.open(spool_folder(run_id), owner(run_id, uri))
    for kind, payload in entries:
        spool.add(kind, payload)
    spool.close()
    return spool.folder


def end(status):
    return ("end", {"status": status, "end_time": 12345})


def test_a_run_whose_process_died_is_delivered_and_marked_killed(run_id, uri):
    spool = Spool.open(spool_folder(run_id), owner(run_id, uri))
    spool.add("tags", {"a": "b"})
    spool.add("artifacts", {}, lambda folder: (folder / "views.txt").write_text("views"))
    spool.close()
    (synced,) = sync_all(SECONDS)
    assert (synced.run, synced.delivered, synced.left, synced.why) == (f"cats ({run_id})", 3, 0, "")
    assert status(run_id) == "KILLED"
    assert tags(run_id)["a"] == "b"
    assert [file.path for file in MlflowClient().list_artifacts(run_id)] == ["views.txt"]
    assert not synced.folder.exists()


@pytest.mark.parametrize("state", ["FINISHED", "FAILED", "KILLED"])
def test_a_run_that_said_how_it_ended_is_what_it_said(run_id, uri, state):
    leave(run_id, uri, ("tags", {"a": "b"}), end(state))
    (synced,) = sync_all(SECONDS)
    assert (synced.delivered, synced.left) == (2, 0)
    info = MlflowClient().get_run(run_id).info
    assert (info.status, info.end_time) == (state, 12345)


def test_a_run_that_ended_stays_so_when_the_first_try_met_no_server(run_id, uri, tmp_path):
    MlflowClient().set_terminated(run_id, "FINISHED", 12345)
    folder = leave(run_id, uri, ("tags", {"a": "b"}))
    with outage(tmp_path):
        assert sync(folder, 0.2).left > 0
    assert sync(folder, SECONDS).left == 0
    assert tags(run_id)["a"] == "b"
    assert status(run_id) == "FINISHED"


def test_a_busy_spool_is_left_alone(run_id, uri):
    spool = Spool.open(spool_folder(run_id), owner(run_id, uri))
    spool.add("tags", {"a": "b"})
    (synced,) = sync_all(SECONDS)
    assert (synced.run, synced.delivered, synced.left) == (run_id, 0, 0)
    assert "at work" in synced.why
    assert status(run_id) == "RUNNING"
    assert "a" not in tags(run_id)
    assert read_owner(spool.folder).pid == os.getpid()
    spool.close()


def test_a_spool_without_an_owner_is_named_and_kept(run_id, uri):
    folder = leave(run_id, uri, ("tags", {"a": "b"}))
    (folder / "run.json").unlink()
    (synced,) = sync_all(SECONDS)
    assert (synced.folder, synced.run, synced.delivered, synced.left) == (folder, run_id, 0, 1)
    assert "run.json" in synced.why
    assert len(list(folder.glob("*.json"))) == 1


def test_an_empty_folder_is_cleared_away_and_a_file_is_left_alone(uri):
    (spool_root() / "notes").mkdir(parents=True)
    (spool_root() / "notes.txt").write_text("")
    (synced,) = sync_all(SECONDS)
    assert (synced.left, synced.why) == (0, "")
    assert not synced.folder.exists()


def test_a_spool_without_entries_of_a_run_that_goes_on_is_that_of_a_killed_one(run_id, uri):
    folder = leave(run_id, uri, ("tags", {"a": "b"}))
    (folder / "000000000.json").unlink()
    (synced,) = sync_all(SECONDS)
    assert (synced.delivered, synced.left) == (1, 0)
    assert status(run_id) == "KILLED"


def test_every_spool_goes_to_its_own_server(run_id, uri, empty_database, tmp_path):
    (tmp_path / "other").mkdir()
    other_uri = f"sqlite:///{tmp_path}/other/mlflow.db"
    shutil.copy(empty_database, tmp_path / "other")
    other_id = MlflowClient(other_uri).create_run("0").info.run_id
    leave(run_id, uri, ("tags", {"a": "here"}), end("FINISHED"))
    leave(other_id, other_uri, ("tags", {"a": "there"}), end("FAILED"))
    assert [synced.left for synced in sync_all(SECONDS)] == [0, 0]
    here, there = MlflowClient(uri).get_run(run_id), MlflowClient(other_uri).get_run(other_id)
    assert (here.data.tags["a"], here.info.status) == ("here", "FINISHED")
    assert (there.data.tags["a"], there.info.status) == ("there", "FAILED")


def test_what_cannot_be_delivered_is_counted_explained_and_kept(run_id, uri, unused_port, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    nowhere = f"http://127.0.0.1:{unused_port}"
    folder = leave(run_id, nowhere, ("tags", {"a": "b"}))
    for _ in range(2):
        synced = sync(folder, 0.5)
        assert (synced.delivered, synced.left) == (0, 2)
        assert "nobody answers" in synced.why
    spool = Spool.open(folder)
    assert [entry.kind for entry in spool.entries()] == ["tags", "end"]
    assert spool.owner.tracking_uri == nowhere
    spool.close()


def test_what_is_refused_is_left_and_the_rest_comes(run_id, uri):
    folder = leave(run_id, uri, ("tags", {"": "no name"}), ("tags", {"a": "b"}), end("FINISHED"))
    (synced,) = sync_all(SECONDS)
    assert (synced.delivered, synced.left) == (2, 1)
    assert synced.why
    assert status(run_id) == "FINISHED"
    assert len(list(folder.glob("[0-9]*.json"))) == 1


def test_a_run_that_was_deleted_for_good_does_not_hold_up_the_others(run_id, uri):
    leave("0" * 32, uri, ("tags", {"a": "b"}))
    leave(run_id, uri, ("tags", {"a": "b"}), end("FINISHED"))
    gone, there = sync_all(2)
    assert (gone.delivered, gone.left) == (0, 2)
    assert "not found" in gone.why
    assert there.left == 0


def test_draining_delivers_leaves_the_run_running_and_says_what_is_left_and_why(run_id, uri):
    spool = Spool.open(spool_folder(run_id), owner(run_id, uri))
    spool.add("tags", {"a": "b"})
    assert drain(spool, spool.owner, SECONDS) == (1, 0, "")
    assert tags(run_id)["a"] == "b"
    assert status(run_id) == "RUNNING"
    spool.add("tags", {"": "no name"})
    delivered, left, why = drain(spool, spool.owner, SECONDS)
    assert (delivered, left) == (0, 1)
    assert why
    spool.close()


def test_what_waits_is_registered_under_another_name(store):
    run = MlflowClient().create_run("0").info.run_id
    model = MlflowClient().create_logged_model("0", "step-1", run)
    MlflowClient().finalize_logged_model(model.model_id, "READY")
    payload = {"model": model.model_id, "model_name": "team-a", "tags": {}, "alias": "base", "description": "made"}
    leave(run, store, ("version", payload), end("FINISHED"))
    (synced,) = sync_all(SECONDS, "team-b")
    assert (synced.delivered, synced.left) == (2, 0)
    assert [found.name for found in MlflowClient().search_registered_models()] == ["team-b"]
    assert tags(run)["hpt.model"] == "models:/team-b/1"
