import gc
import weakref

import numpy as np
import pytest
import torch

from hpt_mlflow.data.batches import ViewBatches
from hpt_mlflow.data.images import Images
from hpt_mlflow.data.sources import open_dataset
from hpt_mlflow.data.statistics import ChannelStatistics
from hpt_mlflow.errors import HptError
from hpt_mlflow.methods import METHODS, load_method
from hpt_mlflow.models.architecture import Architecture
from hpt_mlflow.models.backbone import build_backbone
from hpt_mlflow.training import loop, memory
from hpt_mlflow.training.loop import Trainer
from hpt_mlflow.training.memory import images_that_fit, out_of_memory, try_step
from hpt_mlflow.training.plan import Plan

GIB = 2**30
GPU = torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("images", "taken", "free", "fitting"),
    [
        (32, 2 * GIB, 10 * GIB, 160),
        (32, 3 * GIB, 10 * GIB, 104),
        (2, GIB, 3 * GIB, 6),
        (2, GIB, -GIB, 0),
        (8, 0, 4, 32),
    ],
)
def test_the_images_that_fit_are_counted_by_those_that_did(images, taken, free, fitting):
    assert images_that_fit(images, taken, free) == fitting


@pytest.fixture
def gpu(monkeypatch):
    """A GPU with 10 GiB for this process, of which steps of 32 images take 2 GiB."""
    figures = {
        "mem_get_info": lambda device: (8 * GIB, 80 * GIB),
        "memory_reserved": lambda device: 2 * GIB,
        "memory_allocated": lambda device: GIB,
        "max_memory_allocated": lambda device: 3 * GIB,
        "empty_cache": lambda: None,
        "reset_peak_memory_stats": lambda device: None,
    }
    for name, figure in figures.items():
        monkeypatch.setattr(torch.cuda, name, figure)


@pytest.fixture
def trainer_of():
    """A function from a method to a trainer, and the batches that it learns from."""

    def make(name, batch_size=8):
        method = load_method(name)
        plan = Plan(
            steps=2,
            batch_size=batch_size,
            learning_rate=0.01,
            warmup_steps=0,
            weight_decay=0,
            method=name,
            options=method.fit_options(METHODS[name].presets["quick"], (), batch_size, 256, 1),
        )
        images = Images(open_dataset("builtin:noto"), np.arange(256), smallest_side=16)
        network = build_backbone(Architecture("resnet18", 16, small_stem=True))
        statistics = ChannelStatistics((0.3,) * 3, (0.35,) * 3)
        batches = ViewBatches(images, batch_size, 16, plan.subset, plan.strengths, 0, views=method.views)
        return Trainer(*network, plan, statistics, torch.device("cpu")), batches

    return make


@pytest.mark.usefixtures("gpu")
def test_a_batch_that_fits_is_named(trainer_of, monkeypatch):
    trainer, batches = trainer_of("moco", 256)
    (task,) = batches.tasks(range(1))
    trainer.device, tried = GPU, []
    monkeypatch.setattr(memory, "try_step", lambda trainer, batch, images: tried.append(images))
    problem, _, remedy = str(out_of_memory(trainer, batches[task])).partition("; ")
    assert problem == "batch_size: cuda:0 has no memory for steps of 256 images (10.0 GiB are there for this process)"
    assert remedy == "use 112 or less"
    assert tried == [256 // memory.TRIED]


@pytest.mark.usefixtures("gpu")
def test_where_nothing_fits_that_is_said(trainer_of, monkeypatch):
    def fail(*given):
        raise torch.OutOfMemoryError

    trainer, batches = trainer_of("moco")
    (task,) = batches.tasks(range(1))
    trainer.device = GPU
    monkeypatch.setattr(memory, "try_step", fail)
    message = str(out_of_memory(trainer, batches[task]))
    assert message.endswith("use a smaller one, a smaller network or smaller images")


def test_what_a_step_has_held_is_free_before_it_is_measured_what_fits(trainer_of, monkeypatch):
    trainer, batches = trainer_of("moco")
    held, still_there = [], []

    def fail(views, step):
        features = trainer.backbone(views[0])
        held.append(weakref.ref(features))
        raise torch.OutOfMemoryError

    def measure(trainer, batch, images_bytes):
        # As the real one does first.
        gc.collect()
        still_there.extend(features() is not None for features in held)
        return HptError("measured")

    monkeypatch.setattr(trainer, "update", fail)
    monkeypatch.setattr(loop, "out_of_memory", measure)
    with pytest.raises(HptError, match="measured"):
        list(trainer.train(batches, 0, 1))
    assert still_there == [False]


def test_a_step_that_cannot_be_tried_leaves_the_size_open(trainer_of, gpu, monkeypatch):
    def fail(*given):
        raise ValueError("Expected more than 1 value per channel when training")

    trainer, batches = trainer_of("moco")
    (task,) = batches.tasks(range(1))
    trainer.device = GPU
    monkeypatch.setattr(memory, "try_step", fail)
    assert str(out_of_memory(trainer, batches[task])).endswith("smaller images")


def test_a_batch_that_did_not_fit_is_not_recommended(trainer_of, gpu, monkeypatch):
    trainer, batches = trainer_of("moco", 16)
    (task,) = batches.tasks(range(1))
    trainer.device = GPU
    monkeypatch.setattr(memory, "try_step", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: GIB + 1)
    assert str(out_of_memory(trainer, batches[task])).endswith("use 15 or less")
    message = str(out_of_memory(trainer, batches[task], GIB // 2))
    assert "are there for this process, of which 0.5 hold images); use 15 or less" in message


def test_a_training_that_is_out_of_memory_ends_in_one_line(trainer_of, monkeypatch):
    trainer, batches = trainer_of("moco")

    def fail(*given):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(trainer, "learn", fail)
    with pytest.raises(HptError) as caught:
        list(trainer.train(batches, 0, 1))
    assert str(caught.value) == "batch_size: cpu has no memory for steps of 8 images; use a smaller one"


@pytest.mark.parametrize("name", [name for name in METHODS if not load_method(name).local_views])
def test_a_step_of_fewer_images_can_be_tried(trainer_of, name):
    trainer, batches = trainer_of(name)
    (task,) = batches.tasks(range(1))
    try_step(trainer, batches[task], 4)
    assert all(parameter.grad is None for parameter in trainer.method.parameters())
