from __future__ import annotations

import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch._inductor import config as inductor

from hpt_mlflow.data.batches import ViewBatches
from hpt_mlflow.data.statistics import ChannelStatistics
from hpt_mlflow.errors import HptError
from hpt_mlflow.methods import load_method
from hpt_mlflow.models import bfloat16
from hpt_mlflow.training import arithmetic
from hpt_mlflow.training.arithmetic import (
    FEWEST_COMPILED_STEPS,
    choose_compile,
    choose_graph,
    choose_precision,
    choose_steps,
)
from hpt_mlflow.training.loop import Trainer
from hpt_mlflow.training.plan import Plan

CPU = torch.device("cpu")
LONG = FEWEST_COMPILED_STEPS["cpu"]
has_compiler = pytest.mark.skipif(
    not shutil.which(os.environ.get("CXX", "g++")), reason="torch.compile needs a C++ compiler"
)


@pytest.fixture
def no_compiler():
    arithmetic._why_not_compile.cache_clear()
    torch._dynamo.reset()
    with inductor.patch({"cpp.cxx": ("no-such-compiler",), "fx_graph_cache": False}):
        yield
    arithmetic._why_not_compile.cache_clear()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_named_precision_is_used_whatever_the_processor(precision):
    assert choose_precision(precision, CPU) == precision


def test_float16_needs_a_gpu():
    with pytest.raises(HptError, match=r"^precision: float16 .* cpu") as caught:
        choose_precision("float16", CPU)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("processor", "precision"),
    [
        ("Fast 9000 (avx2, avx512f)", "float32"),
        ("Fast 9001 (avx2, avx512f, avx512_bf16)", "bfloat16"),
        ("Fast 9002 (avx2, avx512f, amx_bf16)", "bfloat16"),
    ],
)
def test_auto_is_bfloat16_where_the_processor_computes_in_it(processor, precision, monkeypatch):
    monkeypatch.setattr(bfloat16, "processor", lambda: processor)
    assert choose_precision("auto", CPU) == precision


def test_auto_is_float32_on_other_devices():
    assert choose_precision("auto", torch.device("mps")) == "float32"


def test_auto_compiles_no_short_training_and_off_compiles_none(no_compiler):
    assert not choose_compile("auto", LONG - 1, CPU)
    assert not choose_compile("off", LONG, CPU)
    assert not choose_compile("auto", 100 * LONG, torch.device("mps"))


@pytest.mark.slow
@has_compiler
def test_on_compiles_any_training_and_auto_a_long_one():
    assert choose_compile("on", 1, CPU)
    assert choose_compile("auto", LONG, CPU)


def test_compiling_is_refused_without_a_compiler_and_auto_does_without(no_compiler):
    with pytest.raises(HptError, match=r"^compile: .*C\+\+ compiler.*no-such-compiler.*; use auto or off$") as caught:
        choose_compile("on", 1, CPU)
    assert "\n" not in str(caught.value)
    assert not choose_compile("auto", LONG, CPU)


@pytest.mark.slow
@has_compiler
def test_a_compiled_training_learns_as_one_that_is_not_compiled(open_images):
    plan = Plan(
        steps=6,
        batch_size=8,
        learning_rate=0.1,
        warmup_steps=2,
        weight_decay=1e-4,
        options={"key_momentum": 0.9, "temperature": 0.2, "queue_size": 16, "bn_splits": 2},
        seed=3,
    )
    rng = np.random.default_rng(0)
    images = open_images(list(rng.integers(0, 256, (32, 2, 2, 3), dtype=np.uint8).repeat(12, 1).repeat(12, 2)))
    statistics = ChannelStatistics((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    curves = {}
    torch._dynamo.reset()
    counters.clear()
    for compiled in (False, True):
        torch.manual_seed(5)
        layers = [nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        trainer = Trainer(nn.Sequential(*layers), 8, replace(plan, compile=compiled), statistics, CPU)
        batches = ViewBatches(images, 8, 16, plan.subset, plan.strengths, plan.seed)
        progress = trainer.train(batches, workers=0, report_every=1)
        curves[compiled] = [metrics["train/loss"] for _, metrics in progress]
        assert (counters["stats"]["unique_graphs"] > 0) == compiled
    assert len(curves[True]) == 6
    assert curves[True] == pytest.approx(curves[False], rel=1e-3)
    assert len(set(curves[False])) == 6


GRAPH = Plan(steps=9, batch_size=8, learning_rate=0.1, warmup_steps=0, weight_decay=0)


def test_a_graph_holds_the_steps_of_one_process_on_a_gpu():
    gpu = torch.device("cuda", 0)
    assert choose_graph("auto", GRAPH, gpu, 1)
    assert choose_graph("on", replace(GRAPH, precision="bfloat16", method="simclr"), gpu, 1)
    assert not choose_graph("off", GRAPH, gpu, 1)


@pytest.mark.parametrize(
    ("changes", "device", "processes", "reason"),
    [
        ({}, "cpu", 1, "the device is cpu"),
        ({}, "cuda:0", 2, "2 processes train together"),
        ({"precision": "float16"}, "cuda:0", 1, "float16 looks at the gradients"),
        ({"compile": True}, "cuda:0", 1, "networks are compiled"),
    ],
)
def test_steps_that_no_graph_can_hold_are_done_one_by_one(changes, device, processes, reason):
    plan = replace(GRAPH, **changes)
    assert not choose_graph("auto", plan, torch.device(device), processes)
    with pytest.raises(HptError, match=f"^cuda_graph: .*{reason}"):
        choose_graph("on", plan, torch.device(device), processes)


def test_without_steps_there_is_no_graph_whatever_is_asked_for():
    assert not choose_graph("on", replace(GRAPH, update="bn-stats"), torch.device("cuda", 0), 1)


@pytest.mark.parametrize("graph", ["auto", "on"])
def test_a_graph_goes_before_a_compiler_that_is_not_asked_for(graph):
    long = replace(GRAPH, steps=FEWEST_COMPILED_STEPS["cuda"])
    chosen = choose_steps("auto", graph, long, torch.device("cuda", 0), 1)
    assert (chosen.graph, chosen.compile) == (True, False)


@pytest.mark.slow
@has_compiler
def test_a_long_training_that_can_be_no_graph_is_compiled():
    chosen = choose_steps("auto", "auto", replace(GRAPH, steps=LONG), CPU, 1)
    assert (chosen.graph, chosen.compile) == (False, True)


def test_a_compiler_and_a_graph_cannot_both_be_asked_for():
    with pytest.raises(HptError, match="^cuda_graph: .*networks are compiled"):
        choose_steps("on", "on", GRAPH, torch.device("cuda", 0), 1)


def test_of_bfloat16_that_a_gpu_only_emulates_is_warned(monkeypatch, caplog):
    monkeypatch.setattr(arithmetic, "has_native_bfloat16", lambda device: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    assert choose_precision("bfloat16", torch.device("cuda")) == "bfloat16"
    assert "Tesla T4 computes in bfloat16 by emulation only" in caplog.text
    assert choose_precision("auto", torch.device("cuda")) == "float32"


def test_steps_of_a_method_that_differ_from_each_other_are_done_one_by_one(monkeypatch):
    monkeypatch.setattr(load_method("byol"), "capturable", False)
    plan = replace(GRAPH, method="byol")
    assert not choose_graph("auto", plan, torch.device("cuda"), 1)
    with pytest.raises(HptError, match="^cuda_graph: .*steps of byol differ from each other"):
        choose_graph("on", plan, torch.device("cuda"), 1)
