from __future__ import annotations

import copy
import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo import eval_frame
from torch._dynamo.utils import counters

from hpt_mlflow.data.batches import ViewBatches
from hpt_mlflow.data.statistics import ChannelStatistics
from hpt_mlflow.errors import HptError
from hpt_mlflow.training import arithmetic
from hpt_mlflow.training.arithmetic import Arithmetic, choose_arithmetic
from hpt_mlflow.training.loop import Trainer
from hpt_mlflow.training.plan import Plan

CPU = torch.device("cpu")
# Of a training that is over before anything is compiled, and of one that goes on for days.
SHORT, LONG = 10, 10_000_000


@pytest.fixture(autouse=True)
def short_trial(monkeypatch):
    monkeypatch.setattr(arithmetic, "TRIAL_SECONDS", 0.05)


@pytest.fixture(autouse=True)
def compilers_looked_for_again():
    arithmetic._why_not_compile.cache_clear()
    yield
    arithmetic._why_not_compile.cache_clear()


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """A C++ compiler that nobody runs."""
    file = tmp_path / "g++"
    file.write_text("#!/bin/sh\nexit 1\n")
    file.chmod(0o755)
    monkeypatch.setenv("CXX", str(file))
    return file


@pytest.fixture
def no_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    monkeypatch.delenv("CXX", raising=False)


@pytest.fixture
def native(monkeypatch):
    monkeypatch.setattr(arithmetic, "has_native_bfloat16", lambda device: True)


@pytest.fixture
def emulated(monkeypatch):
    monkeypatch.setattr(arithmetic, "has_native_bfloat16", lambda device: False)


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.fixture
def tried(monkeypatch):
    """The trials that were made, as (precision, side, images), with invented results."""
    trials = []

    def invented(precision, backbone, image_size, images, device, seconds):
        trials.append((precision, image_size, images))
        return {"float32": 50.0, "bfloat16": 80.0}[precision]

    monkeypatch.setattr(arithmetic, "_images_per_second", invented)
    return trials


def choose(
    backbone: nn.Module,
    precision: str = "auto",
    compiled: str = "off",
    *,
    image_size: int = 8,
    batch_size: int = 4,
    steps: int = SHORT,
    device: torch.device = CPU,
) -> Arithmetic:
    return choose_arithmetic(precision, compiled, backbone, image_size, batch_size, steps, device)


def kept_files() -> list[Path]:
    return sorted(Path(os.environ["HPT_CACHE"]).rglob("*.json"))


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_a_named_precision_is_taken_without_a_trial(name, backbone, native, tried):
    assert choose(backbone, name) == Arithmetic(name, compile=False)
    assert not tried


def test_float16_needs_a_gpu(backbone):
    with pytest.raises(HptError, match=r"^precision: float16 .* cpu") as caught:
        choose(backbone, "float16")
    assert "\n" not in str(caught.value)


def test_auto_is_float32_without_a_trial_where_bfloat16_is_emulated(backbone, emulated, tried):
    assert choose(backbone) == Arithmetic("float32", compile=False)
    assert not tried


def test_auto_chooses_by_what_the_processor_can_do(backbone):
    native = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert choose(backbone).precision in (("float32", "bfloat16") if native else ("float32",))


@pytest.mark.parametrize("fastest", ["float32", "bfloat16"])
def test_auto_takes_the_fastest(backbone, monkeypatch, native, fastest):
    monkeypatch.setattr(arithmetic, "_images_per_second", lambda name, *_: 9.0 if name == fastest else 5.0)
    other = {"float32": "bfloat16", "bfloat16": "float32"}[fastest]
    assert choose(backbone) == Arithmetic(fastest, compile=False, trial={fastest: 9.0, other: 5.0})


def test_a_trial_leaves_the_backbone_alone(backbone, native):
    before = copy.deepcopy(backbone.state_dict())
    backbone.eval()
    choose(backbone)
    assert not backbone.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())
    assert all(parameter.grad is None for parameter in backbone.parameters())


def test_a_trial_gives_images_per_second(backbone):
    class Slow(nn.Module):
        """Says which batches it got, and takes its time."""

        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, images):
            assert self.training
            assert images.shape == (6, 3, 8, 8)
            seen.append(images.dtype if not torch.is_autocast_enabled("cpu") else torch.get_autocast_dtype("cpu"))
            clock[0] += 0.5
            return self.scale * images

    seen, clock = [], [0.0]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(arithmetic.time, "perf_counter", lambda: clock[0])
        for precision, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
            assert arithmetic._images_per_second(precision, Slow(), 8, 6, CPU, 4.0) == pytest.approx(6 / 0.5)
            assert seen == [dtype] * 8
            seen.clear()
        arithmetic._images_per_second("float32", Slow(), 8, 6, CPU, 0.1)
        assert len(seen) == arithmetic.FEWEST_TRIALS
        seen.clear()
        arithmetic._images_per_second("float32", Slow(), 8, 6, CPU, 1e6)
        assert len(seen) == arithmetic.MOST_TRIALS


@pytest.mark.parametrize(("batch_size", "images"), [(4, 4), (32, 32), (256, 32)])
def test_a_trial_on_a_processor_takes_no_more_images_than_it_needs(backbone, native, tried, batch_size, images):
    choose(backbone, batch_size=batch_size, image_size=24)
    assert tried == [("float32", 24, images), ("bfloat16", 24, images)]


@pytest.mark.parametrize(("image_size", "images"), [(64, 32), (96, 14), (224, 4), (1024, 4)])
def test_a_trial_of_large_images_takes_fewer_of_them(backbone, native, tried, image_size, images):
    choose(backbone, batch_size=128, image_size=image_size)
    assert [count for _, _, count in tried] == [images, images]
    tried.clear()
    choose(backbone, batch_size=3, image_size=image_size)
    assert [count for _, _, count in tried] == [3, 3]


def test_what_a_trial_found_is_used_again(backbone, native, tried):
    first = choose(backbone)
    assert first == Arithmetic("bfloat16", compile=False, trial={"float32": 50.0, "bfloat16": 80.0})
    assert len(tried) == 2
    assert choose(copy.deepcopy(backbone)) == first
    assert len(tried) == 2


def test_a_real_trial_is_kept_too(backbone, native, monkeypatch):
    first = choose(backbone)
    assert all(rate > 0 for rate in first.trial.values())

    def refuse(*_):
        raise AssertionError("tried again")

    monkeypatch.setattr(arithmetic, "_images_per_second", refuse)
    assert choose(backbone) == first


@pytest.mark.parametrize(
    "damage",
    [
        *["", "{", "[]", "null", "3", '"fast"', "{}"],
        '{"float32": 50.0}',
        '{"float32": 50.0, "bfloat16": -1}',
        '{"float32": 50.0, "bfloat16": "fast"}',
        '{"float32": null, "bfloat16": 1}',
        '{"float32": NaN, "bfloat16": 1}',
    ],
)
def test_a_damaged_kept_file_is_tried_again_and_replaced(backbone, native, tried, damage):
    choose(backbone)
    (file,) = kept_files()
    good = file.read_text()
    file.write_text(damage)
    assert choose(backbone).trial == {"float32": 50.0, "bfloat16": 80.0}
    assert len(tried) == 4
    assert file.read_text() == good


def test_a_kept_file_that_is_not_text_is_tried_again(backbone, native, tried):
    choose(backbone)
    (file,) = kept_files()
    file.write_bytes(b"\xff\xfe\x00")
    choose(backbone)
    assert len(tried) == 4
    assert json.loads(file.read_text()) == {"float32": 50.0, "bfloat16": 80.0}


def test_a_cache_that_cannot_be_written_is_no_error(backbone, native, tried, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("HPT_CACHE", str(tmp_path / "file"))
    assert choose(backbone).precision == "bfloat16"
    assert choose(backbone).precision == "bfloat16"
    assert len(tried) == 4


def test_another_image_size_batch_network_or_freezing_is_tried_for_itself(backbone, native, tried):
    wider = nn.Sequential(nn.Conv2d(3, 5, 3), *list(backbone)[1:])
    frozen = copy.deepcopy(backbone)
    frozen[0].requires_grad_(False)
    others = [(backbone, {}), (backbone, {"image_size": 9}), (backbone, {"batch_size": 5}), (wider, {}), (frozen, {})]
    for count, (network, sizes) in enumerate(others, start=1):
        choose(network, **sizes)
        assert len(tried) == 2 * count
    assert len(kept_files()) == len(others)


@pytest.mark.parametrize("fact", ["threads", "torch", "processor"])
def test_another_machine_or_torch_is_tried_for_itself(backbone, native, tried, fact, monkeypatch):
    choose(backbone)
    if fact == "threads":
        monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    elif fact == "torch":
        monkeypatch.setattr(torch, "__version__", "9.9")
    else:
        monkeypatch.setattr(arithmetic, "processor", lambda: "another")
    choose(backbone)
    assert len(tried) == 4


def test_weights_and_length_of_a_training_need_no_other_trial(backbone, native, tried):
    choose(backbone)
    with torch.no_grad():
        backbone[0].weight.add_(1)
    choose(backbone, steps=2 * SHORT)
    assert len(tried) == 2


@pytest.mark.parametrize("precision", ["auto", "float32", "bfloat16"])
def test_a_short_training_is_not_compiled_and_needs_no_trial_for_that(backbone, emulated, tried, compiler, precision):
    assert not choose(backbone, precision, "auto").compile
    assert not tried


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_long_training_is_compiled(backbone, native, tried, compiler, precision):
    chosen = choose(backbone, precision, "auto", steps=LONG)
    assert chosen == Arithmetic(
        precision, compile=True, trial={precision: {"float32": 50.0, "bfloat16": 80.0}[precision]}
    )
    assert tried == [(precision, 8, 4)]


def test_one_trial_serves_both_choices(backbone, native, tried, compiler):
    chosen = choose(backbone, "auto", "auto", steps=LONG)
    assert (chosen.precision, chosen.compile) == ("bfloat16", True)
    assert len(tried) == 2


def test_compiling_has_to_be_won_back_twice(backbone, emulated, tried, compiler):
    # 50 images a second in the trial; a step takes 4/3 of that, and saves a tenth of it by 60 s of compiling.
    enough = 2 * 60 / 0.1 / (4 / 3) * 50 / 4
    assert not choose(backbone, "auto", "auto", steps=int(enough * 0.99)).compile
    assert choose(backbone, "auto", "auto", steps=int(enough * 1.01)).compile


@pytest.mark.parametrize("steps", [SHORT, LONG])
def test_off_is_off_and_on_is_on_whatever_the_length_and_without_a_trial(backbone, emulated, tried, compiler, steps):
    assert not choose(backbone, compiled="off", steps=steps).compile
    assert choose(backbone, compiled="on", steps=steps).compile
    assert not tried


def test_nothing_is_compiled_on_auto_without_a_compiler(backbone, emulated, tried, no_compiler):
    assert not choose(backbone, compiled="auto", steps=LONG).compile
    assert not tried


def assert_refused(backbone, match, device=CPU):
    with pytest.raises(HptError, match=match) as caught:
        choose(backbone, "float32", "on", device=device)
    assert "\n" not in str(caught.value)
    assert "use auto or off" in str(caught.value)


def test_compiling_is_refused_without_a_compiler(backbone, no_compiler):
    assert_refused(backbone, r"^compile: .*C\+\+ compiler")


@pytest.mark.parametrize("name", ["", "no-such-compiler"])
def test_compiling_is_refused_where_the_compiler_named_is_not_there(backbone, monkeypatch, name):
    monkeypatch.setenv("CXX", name)
    assert_refused(backbone, r"^compile: .*C\+\+ compiler")


@pytest.mark.parametrize(("system", "looked_for", "other"), [("linux", "g++", "clang++"), ("darwin", "clang++", "g++")])
def test_only_the_compiler_that_torch_looks_for_counts(
    backbone, tmp_path, monkeypatch, compiler, system, looked_for, other
):
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    compiler.rename(tmp_path / other)
    assert_refused(backbone, r"^compile: .*C\+\+ compiler")
    (tmp_path / other).rename(tmp_path / looked_for)
    arithmetic._why_not_compile.cache_clear()
    assert choose(backbone, "float32", "on").compile


def test_compiling_is_refused_without_the_headers_of_python(backbone, compiler, emulated, tmp_path, monkeypatch):
    monkeypatch.setattr(arithmetic.sysconfig, "get_path", lambda name: {"include": str(tmp_path)}[name])
    assert_refused(backbone, r"^compile: .*Python\.h")
    assert not choose(backbone, compiled="auto", steps=LONG).compile


def test_compiling_is_refused_where_torch_cannot_compile_this_python(backbone, compiler, emulated, monkeypatch):
    monkeypatch.setattr(eval_frame, "is_dynamo_supported", lambda: False)
    assert_refused(backbone, "^compile: .*Python 3")
    assert not choose(backbone, compiled="auto", steps=LONG).compile


def test_whether_compiling_works_is_not_asked_where_nothing_is_compiled(backbone, emulated, tried, monkeypatch):
    monkeypatch.setattr(arithmetic, "_missing_compiler", lambda device: pytest.fail("asked"))
    assert not choose(backbone, compiled="off", steps=LONG).compile
    assert not choose(backbone, compiled="auto", steps=SHORT).compile


@pytest.mark.parametrize(("name", "found"), [(None, "gcc"), (None, "clang"), ("", "gcc"), ("mycc", "mycc")])
def test_on_a_gpu_triton_needs_a_c_compiler(monkeypatch, tmp_path, name, found):
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: True)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    if name is not None:
        monkeypatch.setenv("CC", name)
    assert "C compiler" in arithmetic._why_not_compile(torch.device("cuda"))
    arithmetic._why_not_compile.cache_clear()
    (tmp_path / found).write_text("#!/bin/sh\n")
    (tmp_path / found).chmod(0o755)
    assert not arithmetic._why_not_compile(torch.device("cuda"))


def test_on_a_gpu_compiling_needs_triton(monkeypatch, compiler):
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: False)
    assert "triton" in arithmetic._why_not_compile(torch.device("cuda"))


def test_compiling_is_refused_on_windows(backbone, compiler, emulated, monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    assert_refused(backbone, "^compile: .*Windows")
    assert not choose(backbone, compiled="auto", steps=LONG).compile


def test_compiling_is_refused_on_mps(backbone, compiler):
    mps = torch.device("mps")
    assert_refused(backbone, "^compile: .*mps", mps)
    assert choose(backbone, compiled="auto", steps=LONG, device=mps) == Arithmetic("float32", compile=False)


def test_what_was_tried_is_told_as_parameters():
    assert Arithmetic("float32", compile=False).as_params() == {}
    found = Arithmetic("bfloat16", compile=True, trial={"float32": 49.6, "bfloat16": 80.2}).as_params()
    assert found == {"precision_trial": "float32 50 images/s, bfloat16 80 images/s"}


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "g++")), reason="torch.compile needs a C++ compiler")
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
