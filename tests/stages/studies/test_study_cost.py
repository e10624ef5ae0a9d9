"""What a study would take: the kinds of trainings that are tried, and what is counted."""

from __future__ import annotations

import pytest
import torch

from hpt_mlflow.data.sources import open_dataset
from hpt_mlflow.experiments.plan import job
from hpt_mlflow.models.architecture import Architecture
from hpt_mlflow.settings import StudySettings
from hpt_mlflow.stages.studies import cost as study_cost
from hpt_mlflow.stages.studies.cost import Trials, passes_of, seconds_of

DIGITS = "builtin:digits"
NETWORK = Architecture("shufflenet_v2_x0_5", 32)
TINY = {"data": DIGITS, "batch_size": 8, "bn_splits": 1, "precision": "float32", "seed": 0, "milestones": "100%"}
TARGET = job("pretrain", steps=10, **TINY)
REFRESHED = job("adapt", TARGET, steps=10, update="bn-stats", **TINY)


@pytest.fixture
def datasets(store):
    return {DIGITS: open_dataset(DIGITS)}


@pytest.fixture
def trials(datasets):
    return Trials(torch.device("cpu"), datasets, NETWORK)


def evaluation(training=TARGET, whole_run=False, **settings):
    return job("evaluate", training, whole_run, data=DIGITS, seed=0, **{"untrained": False} | settings)


def test_each_kind_of_training_is_tried_once(trials):
    longer = job("pretrain", **TINY | {"steps": 1000, "seed": 3})
    few = job("pretrain", steps=10, **TINY | {"batch_size": None, "images": "5"})
    first = [trials.seconds_per_step(each) for each in (TARGET, REFRESHED, longer, few)]
    assert all(seconds > 0 for seconds in first)
    assert first[2] == first[0]
    # A batch of five images has two parts at most.
    assert [kind[:3] for kind in trials.seconds] == [(DIGITS, "all", 8), (DIGITS, "bn-stats", 8), (DIGITS, "all", 5)]
    assert [dict(kind.options)["bn_splits"] for kind in trials.seconds] == [1, 1, 1]
    assert [trials.seconds_per_step(each) for each in (TARGET, REFRESHED, longer, few)] == first


def test_an_evaluation_passes_all_images_for_each_milestone(datasets):
    images = len(datasets[DIGITS])
    looked_at = job("pretrain", steps=10, **TINY | {"milestones": "10%,50%"})
    assert passes_of(evaluation(), datasets[DIGITS]) == images
    assert passes_of(evaluation(untrained=True), datasets[DIGITS]) == 2 * images
    # 1, 5 and the last step.
    assert passes_of(evaluation(looked_at, whole_run=True), datasets[DIGITS]) == 3 * images
    assert passes_of(evaluation(looked_at), datasets[DIGITS]) == images


def test_what_learns_labels_by_views_passes_these_too(datasets):
    images, train = len(datasets[DIGITS]), len(datasets[DIGITS].split(0).train)
    # Forward and backward of 64 views in each of 20 iterations, at two learning rates.
    assert passes_of(evaluation(protocol="finetune", labels="100", steps=20), datasets[DIGITS]) == (
        images + 3 * 2 * 20 * 64
    )
    # The paper's two schedules: 2,500 iterations, and 90 epochs of 100 images in whole steps of four iterations.
    epochs = round(90 * 100 / 64 / 4) * 4
    assert passes_of(evaluation(protocol="finetune", labels="100"), datasets[DIGITS]) == (
        images + 3 * 2 * (2500 + epochs) * 64
    )
    of_all = evaluation(protocol="finetune", labels="100%", steps=20)
    assert passes_of(of_all, datasets[DIGITS]) == images + 3 * 2 * 20 * min(64, train)
    assert passes_of(evaluation(protocol="paper", steps=7), datasets[DIGITS]) == images + 7 * 512


def test_seconds_add_up_and_are_shared_by_those_at_once(datasets, monkeypatch):
    monkeypatch.setattr(study_cost, "_seconds_to_start", lambda: 5.0)
    monkeypatch.setattr(study_cost, "_try", lambda stage, *_: 2.0 if stage == "pretrain" else 0.5)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    jobs = [TARGET, REFRESHED, evaluation()]
    # 8 images a step, each passing four times.
    expected = 3 * 5 + 10 * 2 + 10 * 0.5 + len(datasets[DIGITS]) * 2 / 8 / 4

    def told(at_once, jobs=jobs):
        settings = StudySettings(target=DIGITS, device="cpu", at_once=at_once, batch_size=8, bn_splits=1)
        return seconds_of(jobs, settings, datasets, NETWORK)

    assert told(1) == pytest.approx(expected)
    assert told(2) == pytest.approx(expected / 2)
    # Two cores do not do more than two at once.
    assert told(8) == pytest.approx(expected / 2)
    assert told(1, []) == 0


def test_threads_are_as_they_were(datasets):
    before = torch.get_num_threads()
    seconds_of([TARGET], StudySettings(target=DIGITS, device="cpu", at_once=2), datasets, NETWORK)
    assert torch.get_num_threads() == before
