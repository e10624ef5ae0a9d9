from pathlib import Path

import mlflow
import numpy as np
import pytest
from safetensors.numpy import save_file

from hpt_mlflow.data import contents
from hpt_mlflow.data.dataset import Dataset
from hpt_mlflow.tracking.models import seen_images as module
from hpt_mlflow.tracking.models.seen_images import NotKeptError, log_seen_images, seen_images
from hpt_mlflow.tracking.runs.stage_run import stage_run
from hpt_mlflow.tracking.tags import SEEN_IMAGES_FILE

PICTURES = [bytes([i]) for i in (5, 3, 9, 5)]
CATS = Dataset("cats", "test:cats", [*PICTURES, Path("/nowhere/6.png")], [str(i) for i in range(5)], None, ())


def keep(indices):
    with stage_run("pretrain cats") as run:
        log_seen_images(run, CATS, np.array(indices, dtype=np.int64))
    return run.run_id


@pytest.fixture
def run_id(store):
    return keep(range(5))


def path_of(run_id):
    return Path(mlflow.get_run(run_id).info.artifact_uri.removeprefix("file://")) / SEEN_IMAGES_FILE


def assert_not_kept(run_id, *words):
    with pytest.raises(NotKeptError) as caught:
        seen_images(run_id)
    for word in (run_id, *words):
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_was_kept_is_read_back_once_each(run_id):
    found = seen_images(run_id)
    assert found.contents.tolist() == sorted(set(CATS.contents.of(np.arange(4)).tolist()))
    assert found.contents.dtype == np.int64
    assert found.share == 1


def test_of_too_many_images_a_sample_is_kept_with_its_share(store, monkeypatch):
    monkeypatch.setattr(module, "MOST", 2)
    found = seen_images(keep(range(4)))
    assert found.contents.tolist() == sorted(CATS.contents.of(np.array([0])).tolist())
    assert found.share == 2 / 4


def test_what_an_earlier_version_kept_does_not_count(run_id):
    save_file({"fingerprints": np.array([7])}, path_of(run_id))
    assert_not_kept(run_id, "another version")
    save_file({"contents": np.array([7]), "share": np.ones(1)}, path_of(run_id), {"version": "1"})
    assert_not_kept(run_id, "another version")


def test_a_run_that_kept_nothing_is_told_from_one_that_saw_nothing(store):
    with stage_run("pretrain cats") as run:
        pass
    assert_not_kept(run.run_id, "not there")
    assert_not_kept("0" * 32)
    assert seen_images(keep([])).contents.shape == (0,)


VERSION = {"version": str(contents.VERSION)}


@pytest.mark.parametrize("content", [b"", b"no safetensors", b"\x80\x04K\x05."])
def test_a_damaged_file_is_named(run_id, content):
    path_of(run_id).write_bytes(content)
    assert_not_kept(run_id, "cannot be read")


@pytest.mark.parametrize(
    "tensors",
    [
        {"contents": np.array([7])},
        {"contents": np.array([7.5]), "share": np.ones(1)},
        {"contents": np.array([[7]]), "share": np.ones(1)},
        {"contents": np.array([7]), "share": np.zeros(1)},
        {"contents": np.array([7]), "share": np.array([np.nan])},
    ],
)
def test_tensors_that_are_not_those_of_seen_images_are_refused(run_id, tensors):
    save_file(tensors, path_of(run_id), VERSION)
    assert_not_kept(run_id)
