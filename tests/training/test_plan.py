from __future__ import annotations

import math
from dataclasses import replace

import pytest

from hpt_mlflow.training.plan import PRESETS, Plan

PLAN = Plan(
    steps=100,
    batch_size=8,
    learning_rate=0.4,
    warmup_steps=10,
    weight_decay=1e-4,
    options={"key_momentum": 0.99, "temperature": 0.1, "queue_size": 64, "bn_splits": 2},
)


@pytest.mark.parametrize("step", [10, 25, 50, 99])
def test_learning_rate_after_warmup_is_a_half_cosine(step):
    assert PLAN.learning_rate_at(step) == pytest.approx(0.4 * math.cos(math.pi * step / 200) ** 2)


@pytest.mark.parametrize("step", range(10))
def test_learning_rate_rises_linearly_during_warmup(step):
    assert PLAN.learning_rate_at(step) == pytest.approx((step + 1) / 10 * 0.4 * math.cos(math.pi * step / 200) ** 2)


def test_learning_rate_without_warmup_starts_at_its_peak():
    plan = replace(PLAN, warmup_steps=0)
    rates = [plan.learning_rate_at(step) for step in range(100)]
    assert rates[0] == 0.4
    assert rates == sorted(rates, reverse=True)
    assert 0 < rates[-1] < 1e-3 * 0.4


def test_learning_rate_reaches_half_of_the_peak_in_the_middle():
    assert PLAN.learning_rate_at(50) == pytest.approx(0.2)


def test_params_are_flat_and_complete():
    params = PLAN.as_params()
    assert params["subset"] == "crop,color,gray,blur,flip"
    assert params["strength_hue"] == 0.4
    assert params["learning_rate"] == 0.4
    assert (params["method"], params["queue_size"]) == ("moco", 64)
    assert not {"strengths", "options"} & params.keys()
    assert not any(isinstance(value, dict) for value in params.values())


def test_params_name_an_empty_subset():
    assert replace(PLAN, subset=()).as_params()["subset"] == "none"


def test_paper_preset_is_the_papers():
    preset = PRESETS["paper"]
    plan = preset.pretrain
    assert (preset.arch, preset.image_size, plan.steps, preset.adapt.steps) == (
        "resnet50",
        224,
        200_000,
        5_000,
    )
    assert plan.options == {"queue_size": 65_536, "key_momentum": 0.999, "temperature": 0.2, "bn_splits": 4}
    assert (plan.batch_size, plan.learning_rate, plan.weight_decay, plan.warmup_steps) == (256, 0.03, 1e-4, 0)
    assert (plan.strengths.hue, plan.strengths.crop_scale, plan.strengths.blur_sigma) == (0.4, (0.2, 1), (0.1, 2))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_fit_together(name):
    for plan in (PRESETS[name].pretrain, PRESETS[name].adapt):
        assert plan.options["queue_size"] % plan.batch_size == 0
        assert plan.batch_size >= 2 * plan.options["bn_splits"]
        assert plan.warmup_steps < plan.steps


def test_the_paper_adapts_as_it_pretrains():
    paper = PRESETS["paper"]
    assert replace(paper.adapt, steps=paper.pretrain.steps) == paper.pretrain
    assert (paper.adapt.optimizer, paper.adapt.statistics, paper.adapt.head_rate) == ("sgd", "refresh", 1)
