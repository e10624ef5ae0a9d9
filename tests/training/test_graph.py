"""A step as a graph, held by torch.fx: like a CUDA graph, it does operations again that it has seen once."""

import gc
import logging
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from hpt_mlflow.augment.multicrop import LocalViews
from hpt_mlflow.data.batches import ViewBatches
from hpt_mlflow.data.images import Images
from hpt_mlflow.data.sources import open_dataset
from hpt_mlflow.data.statistics import ChannelStatistics
from hpt_mlflow.methods import METHODS, load_method
from hpt_mlflow.methods.moco import MoCo
from hpt_mlflow.training import graph, loop
from hpt_mlflow.training.loop import Trainer
from hpt_mlflow.training.plan import Plan

SIZE, STEPS = 16, 5
PLAN = Plan(
    steps=STEPS,
    batch_size=8,
    learning_rate=0.05,
    warmup_steps=2,
    weight_decay=1e-4,
    options={"key_momentum": 0.9, "temperature": 0.2, "queue_size": 16, "bn_splits": 2},
    graph=True,
    seed=3,
)
ADAMW = {"optimizer": "adamw", "learning_rate": 1e-3, "head_rate": 10.0}
PLANS = {
    "sgd": {"clip_gradients": 0.1},
    "adamw": ADAMW | {"statistics": "keep", "layer_decay": 0.5},
    "simclr": {"method": "simclr", "options": {"temperature": 0.5}},
    "byol": {"method": "byol", "options": {"target_momentum": 0.9}},
    "lejepa": {"method": "lejepa", "options": {"sigreg_weight": 0.1}} | ADAMW,
    "dino": {"method": "dino", "options": METHODS["dino"].presets["quick"] | {"prototypes": 16}} | ADAMW,
    "low rank": ADAMW | {"update": "lora", "lora_targets": "2.0"},
}


class Block(nn.Sequential):
    def __init__(self, before, after, size):
        super().__init__(nn.Conv2d(before, after, size, stride=size, bias=False), nn.BatchNorm2d(after), nn.ReLU())


class Small(nn.Module):
    """Three blocks, the last one of a convolution that may get low-rank changes; 24 features."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block(3, 8, 2), Block(8, 16, 2), Block(16, 24, 1)])

    def forward(self, images):
        for block in self.blocks:
            images = block(images)
        return images.mean(dim=(2, 3))


def capture_by_fx(run):
    """Numbers of Python are written into the graph, as into a CUDA graph."""
    # It would look for the arguments of a bound method.
    return torch.no_grad()(make_fx(lambda: run())())  # noqa: PLW0108


def fail(run):
    raise RuntimeError("operation not permitted when stream is capturing")


@pytest.fixture(scope="module")
def images():
    dataset = open_dataset("builtin:noto")
    return Images(dataset, np.arange(24), smallest_side=SIZE)


@pytest.fixture
def train(images, monkeypatch):
    """Trains by a plan, in steps that are held by some graph; gives the losses and the state."""

    def trained(plan, capture):
        monkeypatch.setattr(loop, "capture_step", lambda *given: graph.capture_step(*given, capture))
        torch.manual_seed(0)
        trainer = Trainer(Small(), 24, plan, ChannelStatistics((0.3,) * 3, (0.35,) * 3), torch.device("cpu"))
        method = load_method(plan.method)
        local = LocalViews(method.local_views, SIZE // 2)
        batches = ViewBatches(
            images, plan.batch_size, SIZE, plan.subset, plan.strengths, plan.seed, views=method.views, local=local
        )
        losses = [metrics["train/loss"] for _, metrics in trainer.train(batches, 0, 1)]
        return losses, trainer

    return trained


@pytest.mark.parametrize("changes", PLANS.values(), ids=PLANS)
def test_a_graph_does_what_the_steps_do_that_it_holds(train, changes):
    plan = replace(PLAN, **changes)
    expected, plain = train(plan, lambda run: run)
    losses, trainer = train(plan, capture_by_fx)
    assert trainer._graph is not None
    assert losses == expected
    torch.testing.assert_close(trainer.method.state_dict(), plain.method.state_dict(), rtol=0, atol=0)


def test_a_training_by_a_graph_is_the_one_without_it(train):
    """But for views, which a processor makes in its own way: small steps do not magnify that."""
    gentle = replace(PLAN, learning_rate=1e-4)
    losses, _ = train(gentle, capture_by_fx)
    expected, _ = train(replace(gentle, graph=False), capture_by_fx)
    assert losses == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("capture", "reason"),
    [(fail, "not permitted when stream is capturing"), (lambda run: lambda: None, "are not those without it")],
)
@pytest.mark.parametrize("changes", [{}, ADAMW])
def test_without_a_graph_a_training_goes_as_if_none_had_been_tried(train, caplog, capture, reason, changes):
    plan = replace(PLAN, **changes)
    losses, trainer = train(plan, capture)
    assert trainer._graph is None
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert reason in warning
    assert "\n" not in warning
    assert losses == train(replace(plan, graph=False), capture)[0]


def test_a_graph_that_knows_one_step_only_is_not_used(train, monkeypatch, caplog):
    """As where a method reads the number of the step, and forgets to take it from the device."""
    enqueue = MoCo.enqueue
    monkeypatch.setattr(MoCo, "enqueue", lambda self, keys, step: enqueue(self, keys, int(step)))
    _, trainer = train(PLAN, capture_by_fx)
    assert trainer._graph is None
    assert "not those without it" in caplog.text


def test_every_method_can_be_captured():
    assert all(load_method(name).capturable for name in METHODS)
    assert {changes.get("method", "moco") for changes in PLANS.values()} == set(METHODS)


def test_what_a_training_held_is_free_without_collecting_cycles(train, monkeypatch):
    def captured(trainer, crops, draws, _):
        step = graph.StepGraph(trainer, crops, draws)
        step.fill(0, crops, draws, np.random.default_rng(0))
        step.run()
        step.replay = lambda: None
        return step

    monkeypatch.setattr(graph, "capture_step", captured)
    gc.collect()
    gc.disable()
    try:
        _, trainer = train(PLAN, None)
        assert trainer._graph is not None
        held = weakref.ref(trainer)
        del trainer
        assert held() is None
    finally:
        gc.enable()


def test_a_graph_without_memory_for_its_trial_leaves_the_training_as_it_was(train, monkeypatch, caplog):
    def fail(trainer):
        raise torch.OutOfMemoryError("CUDA out of memory")

    expected, _ = train(replace(PLAN, graph=False), capture_by_fx)
    monkeypatch.setattr(graph, "_copies", fail)
    losses, trainer = train(PLAN, capture_by_fx)
    assert trainer._graph is None
    assert losses == expected
    assert "without a CUDA graph (CUDA out of memory)" in caplog.text
