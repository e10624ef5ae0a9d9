from pathlib import Path

import mlflow
import numpy as np
import pytest
from safetensors.numpy import save_file

from hpt_mlflow.tracking.runs import stage_run
from hpt_mlflow.tracking.seen_images import FILE, log_seen_images, seen_images


@pytest.fixture
def run_id(store):
    with stage_run("pretrain cats") as run:
        log_seen_images(run, np.array([5, -3, 2**62, 5, 0], dtype=np.int64))
    return run.run_id


def path_of(run_id):
    return Path(mlflow.get_run(run_id).info.artifact_uri.removeprefix("file://")) / FILE


def test_what_was_kept_is_read_back_once_each(run_id):
    found = seen_images(run_id).fingerprints
    assert found.tolist() == [-3, 0, 5, 2**62]
    assert found.dtype == np.int64


def test_the_share_of_images_that_were_looked_at_is_kept(run_id):
    assert seen_images(run_id).share == 4 / 5


def test_of_an_earlier_version_all_images_were_looked_at(run_id):
    save_file({"fingerprints": np.array([7])}, path_of(run_id))
    assert seen_images(run_id).share == 1
    assert seen_images(run_id).fingerprints.tolist() == [7]


def test_a_run_that_kept_none_has_none(store):
    with stage_run("pretrain cats") as run:
        pass
    assert seen_images(run.run_id) is None
    assert seen_images("0" * 32) is None


@pytest.mark.parametrize("content", [b"", b"no safetensors", b"\x80\x04K\x05."])
def test_a_damaged_file_is_none(run_id, content):
    path_of(run_id).write_bytes(content)
    assert seen_images(run_id) is None


def test_of_no_images_there_is_an_empty_list(store):
    with stage_run("pretrain cats") as run:
        log_seen_images(run, np.array([], dtype=np.int64))
    assert seen_images(run.run_id).fingerprints.shape == (0,)
    assert seen_images(run.run_id).share == 1
