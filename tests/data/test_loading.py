import logging
import os
import signal
import sys
from collections import namedtuple

import numpy as np
import pytest
import torch
from torch.utils.data import _utils

from hpt_mlflow.augment.multicrop import LocalViews
from hpt_mlflow.augment.subset import AUGMENTATIONS, Strengths
from hpt_mlflow.data import loading
from hpt_mlflow.data.batches import ViewBatches
from hpt_mlflow.data.images import Images
from hpt_mlflow.data.loading import default_workers, iterate, workers_with_room
from hpt_mlflow.errors import HptError

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def files(dataset_of, plain_files):
    return Images(dataset_of(plain_files(3)), np.arange(3), smallest_side=4, memory_limit_bytes=0)


def batches_of(images, kind=ViewBatches, **said):
    return kind(images, 3, 8, AUGMENTATIONS, Strengths(), 0, **said)


def test_workers_do_not_change_the_batches(images):
    batches = batches_of(images)
    steps = range(2, 8)
    alone, together = (list(iterate(batches, steps, workers, CPU)) for workers in (0, 2))
    direct = [batches[task] for task in batches.tasks(steps)]
    for first, second, third in zip(alone, together, direct, strict=True):
        assert torch.equal(first.crops, second.crops)
        assert torch.equal(first.crops, third.crops)
        assert first.unreadable == second.unreadable == []


@pytest.mark.skipif(sys.platform == "win32", reason="there is no such signal")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_worker_is_told_in_one_line(images, monkeypatch, workers):
    """As by a system that is out of memory."""

    class Killed(ViewBatches):
        def __getitem__(self, task):
            if task[0] == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__getitem__(task)

    monkeypatch.setattr(_utils, "MP_STATUS_CHECK_INTERVAL", 0.2)
    before = signal.getsignal(signal.SIGCHLD)
    with pytest.raises(HptError, match="^workers: a process that decodes images is gone") as caught:
        list(iterate(batches_of(images, Killed), range(6), workers, CPU))
    assert "\n" not in str(caught.value)
    assert f"fewer workers (this process had {workers})" in str(caught.value)
    assert signal.getsignal(signal.SIGCHLD) == before


def test_other_errors_of_a_worker_are_not_hidden(images, monkeypatch):
    class Broken(ViewBatches):
        def __getitem__(self, task):
            raise RuntimeError("of another kind")

    # Its end waits so long for workers that are gone.
    monkeypatch.setattr(_utils, "MP_STATUS_CHECK_INTERVAL", 0.2)
    with pytest.raises(RuntimeError, match="of another kind"):
        list(iterate(batches_of(images, Broken), range(2), 1, CPU))


def test_a_batch_takes_as_many_bytes_as_it_says(images):
    for said in ({}, {"local": LocalViews(2, 4)}, {"part": slice(1, 3)}, {"views": 4}):
        batches = batches_of(images, **said)
        (task,) = batches.tasks(range(1))
        batch = batches[task]
        assert batches.nbytes() == batch.crops.nbytes + batch.local_crops.nbytes


@pytest.fixture
def shared_memory(monkeypatch):
    """A function that sets how many bytes of shared memory are free."""

    def set_free(free):
        usage = namedtuple("usage", "free")
        monkeypatch.setattr(loading.shutil, "disk_usage", {loading.SHARED_MEMORY: usage(free)}.__getitem__)

    return set_free


@pytest.mark.parametrize(("free", "workers"), [(10**9, 8), (499, 0), (500, 1), (2_600, 5)])
def test_workers_have_room_for_their_batches(shared_memory, free, workers, caplog):
    shared_memory(free)
    assert workers_with_room(8, 100) == workers
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == (workers < 8)
    assert all(f"enough for {workers} instead of 8" in warning and "--shm-size" in warning for warning in warnings)


def test_processes_share_the_room(shared_memory):
    shared_memory(2_600)
    assert workers_with_room(8, 100, processes=2) == 2


def test_without_room_the_training_process_decodes(images, shared_memory):
    shared_memory(0)
    batches = batches_of(images)
    alone, told = (list(iterate(batches, range(3), workers, CPU)) for workers in (0, 2))
    assert all(torch.equal(first.crops, second.crops) for first, second in zip(alone, told, strict=True))


def test_systems_without_shared_memory_in_a_folder_have_room(monkeypatch):
    monkeypatch.setattr(loading, "SHARED_MEMORY", "/not/there")
    assert workers_with_room(8, 10**15) == 8


def test_no_workers_are_started_where_the_cpu_trains_on_images_in_memory(images):
    for processes in (1, 2):
        assert default_workers(images, CPU, processes) == 0
        assert default_workers(images, GPU, processes) >= 1


def test_processes_share_the_cores_that_decode(files, monkeypatch):
    monkeypatch.setattr(loading, "available_cores", lambda: 24)
    for device in (CPU, GPU):
        assert [default_workers(files, device, processes) for processes in (1, 2, 4, 12, 24)] == [23, 11, 5, 1, 1]


def test_workers_are_not_started_without_end(files, monkeypatch):
    monkeypatch.setattr(loading, "available_cores", lambda: 256)
    assert default_workers(files, GPU, 1) == loading.MOST_WORKERS
