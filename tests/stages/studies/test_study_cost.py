"""What a study would take: what is tried, and what is counted."""

from __future__ import annotations

import pytest
import torch

from hpt_mlflow.data.sources import open_dataset
from hpt_mlflow.experiments.plan import job
from hpt_mlflow.models.architecture import Architecture
from hpt_mlflow.settings import StudySettings
from hpt_mlflow.stages.studies import cost as study_cost
from hpt_mlflow.stages.studies.cost import passes_of, seconds_of

DIGITS = "builtin:digits"
NETWORK = Architecture("shufflenet_v2_x0_5", 32)
TINY = {"data": DIGITS, "batch_size": 8, "bn_splits": 1, "precision": "float32", "seed": 0, "milestones": "100%"}
SHORT = {"arch": NETWORK.name, "image_size": 32, "batch_size": 8, "bn_splits": 1, "precision": "float32"}
TARGET = job("pretrain", steps=10, **TINY)
REFRESHED = job("adapt", TARGET, steps=10, update="bn-stats", **TINY)


@pytest.fixture
def datasets(store):
    return {DIGITS: open_dataset(DIGITS)}


def evaluation(training=TARGET, whole_run=False, **settings):
    return job("evaluate", training, whole_run, data=DIGITS, seed=0, **{"untrained": False} | settings)


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
    monkeypatch.setattr(study_cost, "_try", lambda *_: 0.01)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    jobs = [TARGET, REFRESHED, evaluation()]
    # Two trainings of ten steps, of 8 images each that pass four times.
    expected = 3 * 5 + (2 * 10 * 8 * 4 + len(datasets[DIGITS])) * 0.01

    def told(at_once, jobs=jobs):
        settings = StudySettings(target=DIGITS, device="cpu", at_once=at_once, batch_size=8, bn_splits=1)
        return seconds_of(jobs, settings, datasets, NETWORK)

    assert told(1) == pytest.approx(expected)
    assert told(2) == pytest.approx(expected / 2)
    # Two cores do not do more than two at once.
    assert told(8) == pytest.approx(expected / 2)
    assert told(1, []) == 0


def test_steps_are_tried_and_threads_are_as_they_were(datasets, monkeypatch):
    monkeypatch.setattr(study_cost, "_seconds_to_start", lambda: 0.0)
    before = torch.get_num_threads()
    settings = StudySettings(target=DIGITS, device="cpu", at_once=2, **SHORT)
    assert seconds_of([TARGET], settings, datasets, NETWORK) > 0
    assert torch.get_num_threads() == before
