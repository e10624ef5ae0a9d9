import multiprocessing
import os
import signal
from collections import namedtuple
from itertools import chain

import numpy as np
import pytest
import torch
from torch.utils.data import _utils

from hpt_mlflow.augment.crop import centre_crop
from hpt_mlflow.data import loading, squares
from hpt_mlflow.data.squares import square_batches, square_of
from hpt_mlflow.errors import HptError
from hpt_mlflow.pixels import RGB, PixelFormat

CPU, GPU = torch.device("cpu"), torch.device("cuda")
DEEP = PixelFormat((1, 2), (0.0, 0.0), (60_000.0, 60_000.0))


@pytest.fixture
def in_processes(monkeypatch):
    """As for many images and a GPU."""
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("processes cannot be forked here")
    monkeypatch.setattr(squares, "FEWEST_IMAGES", 1)
    # The end of a loader waits so long for workers that are gone.
    monkeypatch.setattr(_utils, "MP_STATUS_CHECK_INTERVAL", 0.2)


@pytest.fixture
def dataset(dataset_of, tmp_path):
    """Seven pictures of other sizes; the third, and all of the last two, cannot be read."""
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (9 + i, 12, 3), dtype=np.uint8) for i in range(7)]
    pictures[2] = pictures[5] = pictures[6] = tmp_path / "missing.png"
    return dataset_of(pictures)


def square_in(dataset, pixels=RGB):
    return square_of(dataset, 8, pixels, lambda image: centre_crop(image, 6))


def batches(square, indices, device, workers=2, batch_size=3):
    return list(square_batches(square, indices, batch_size, 108, device, workers))


def assert_equal(got, expected):
    assert [len(batch) for batch in got] == [len(batch) for batch in expected]
    for ours, theirs in zip(chain(*got), chain(*expected), strict=True):
        assert type(ours) is type(theirs)
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.usefixtures("in_processes")
def test_processes_give_what_threads_give(dataset):
    indices = [3, 0, 2, 1, 4, 5, 6]
    threads = batches(square_in(dataset), indices, CPU)
    assert [[isinstance(one, str) for one in batch] for batch in threads] == [
        [False, False, True],
        [False, False, True],
        [True],
    ]
    assert threads[0][0].shape == (6, 6, 3)
    assert_equal(batches(square_in(dataset), indices, GPU), threads)


@pytest.mark.usefixtures("in_processes")
def test_deep_squares_come_from_processes_as_they_are(dataset_of):
    rng = np.random.default_rng(0)
    square = square_in(dataset_of([rng.integers(0, 60_000, (7, 9, 2), dtype=np.uint16) for _ in range(4)]), DEEP)
    threads = batches(square, range(4), CPU)
    assert threads[0][0].dtype == np.uint16
    assert_equal(batches(square, range(4), GPU), threads)


def test_few_images_need_no_processes(dataset):
    parent = os.getpid()

    def square(index):
        return np.full((1, 1, 1), os.getpid() == parent, np.uint8)

    assert all(one.all() for batch in batches(square, range(5), GPU) for one in batch)


@pytest.mark.usefixtures("in_processes")
def test_without_room_for_batches_threads_make_them(monkeypatch, caplog):
    parent = os.getpid()

    def square(index):
        return np.full((1, 1, 1), os.getpid() == parent, np.uint8)

    assert not any(one.any() for batch in batches(square, range(5), GPU) for one in batch)
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(loading.shutil, "disk_usage", lambda _: usage(100))
    assert all(one.all() for batch in batches(square, range(5), GPU) for one in batch)
    assert "enough for 0 instead of 2 processes" in caplog.text


@pytest.mark.usefixtures("in_processes")
def test_a_killed_process_is_told_in_one_line():
    def square(index):
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(HptError, match="^a process that decodes images is gone .*; repeat the command$"):
        batches(square, range(5), GPU)


def test_who_stops_early_waits_for_no_more_squares(dataset):
    asked = []

    def square(index):
        asked.append(index)
        return np.zeros((1, 1, 1), np.uint8)

    made = square_batches(square, range(10_000), 2, 1, CPU, 1)
    assert len(next(made)) == 2
    made.close()
    assert len(asked) < 20
