from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hpt_mlflow.data.dataset import Dataset
from hpt_mlflow.data.split import Split
from hpt_mlflow.models.architecture import Architecture
from hpt_mlflow.pixels import PixelFormat
from hpt_mlflow.report.card import training_card
from hpt_mlflow.training.plan import Plan

PLAN = Plan(
    steps=1200,
    batch_size=64,
    learning_rate=0.03,
    warmup_steps=0,
    weight_decay=1e-4,
    options={"key_momentum": 0.99, "temperature": 0.2, "queue_size": 999, "bn_splits": 1},
    subset=("crop", "flip"),
)
LABELS = np.arange(2000) % 4
DATASET = Dataset("birds", "folder:/data/birds", [b""] * 2000, ["x"] * 2000, LABELS, ("a", "b", "c", "d"))
SPLIT = Split(np.arange(1200), np.arange(1200, 1600), np.arange(1600, 2000))


def card(plan: Plan = PLAN, parent: str | None = None, **outcome) -> str:
    return training_card(
        ("mnist", "birds"), DATASET, SPLIT, plan, Architecture("resnet18", 32), parent, "moco", **outcome
    )


def test_training_card_says_what_is_done():
    text = card()
    assert "**Chain** mnist > birds" in text
    assert "`folder:/data/birds`: 1,600 images seen, 400 kept for test" in text
    assert "resnet18 at 32 px: random weights" in text
    assert "1,200 steps of 64, learning rate 0.03, views by crop, flip, float32" in text


def test_the_pixels_of_deep_images_are_said():
    assert "Pixels" not in card()
    assert "**Pixels** grey or RGB, 16 bits from 0 to 4,095" in card(pixels=PixelFormat((), (0.0,) * 3, (4095.0,) * 3))


@pytest.mark.parametrize(
    ("update", "words"),
    [
        ("all", "HPT)"),
        ("bn", "HPT-BN)"),
        ("bn-stats", "the paper's Base)"),
        ("last:2", "last blocks: 2"),
        ("lora", "of rank 4"),
    ],
)
def test_training_card_names_parent_and_method(update, words):
    text = card(replace(PLAN, update=update), parent="models:/hpt/3")
    assert "starts from `models:/hpt/3`" in text
    assert words in text


def test_training_card_names_the_level_of_chance():
    assert "**Method** MoCo-v2, resnet18" in card()
    assert "Chance level: loss ln(1 + queue) = 6.91, top-1 = 0.10%." in card()
    simclr = card(replace(PLAN, method="simclr", options={"temperature": 0.5}))
    assert "**Method** SimCLR, resnet18" in simclr
    assert "Chance level: loss ln(2 x batch - 1) = 4.84, top-1 = 0.79%." in simclr


def test_training_card_of_statistics_alone_has_no_loss_to_compare():
    assert "Chance level" not in card(replace(PLAN, update="bn-stats"), parent="models:/hpt/3")


def test_training_card_without_augmentation():
    assert "views by nothing" in card(replace(PLAN, subset=()))


def test_training_card_before_the_end_promises_nothing():
    text = card()
    assert "Result" not in text
    assert "**Next**" not in text


def test_training_card_ends_in_the_next_commands():
    text = card(result={"train/loss": 1.23456}, registered="models:/hpt/4")
    assert "**Result** `models:/hpt/4`: train/loss 1.235" in text
    assert "hpt adapt --parent models:/hpt/4 --data FOLDER" in text
    assert "hpt evaluate --model models:/hpt/4 --data LABELLED_FOLDER" in text
    assert text.endswith("```")
