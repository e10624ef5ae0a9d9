from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from hpt_mlflow.data.split import Split
from hpt_mlflow.data.statistics import ChannelStatistics
from hpt_mlflow.errors import HptError
from hpt_mlflow.evaluation.features import FeatureReader
from hpt_mlflow.evaluation.protocols import PROTOCOLS
from hpt_mlflow.evaluation.protocols.base import learn_labels
from hpt_mlflow.evaluation.task import Task

CPU = torch.device("cpu")
STATISTICS = ChannelStatistics((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
COUNT = 90
CLASSES = np.arange(COUNT) % 3
LABELS = np.stack([CLASSES > 0, CLASSES == 1], axis=1).astype(np.uint8)
# Parts that lie among each other, without image 4, which cannot be read.
PARTS = np.random.default_rng(1).permutation(np.delete(np.arange(COUNT), 4))
SPLIT = Split(np.sort(PARTS[:50]), np.sort(PARTS[50:70]), np.sort(PARTS[70:]))
STEPS = {"fast": None, "paper": 5, "finetune": 8}


def pictures():
    """Images that are red, green or blue by their class, with noise."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 150, (COUNT, 10, 12, 3))
    images[np.arange(COUNT), :, :, CLASSES] += 60
    return list(images.astype(np.uint8))


def small_network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
    )


@pytest.fixture
def task(open_images):
    images = open_images(pictures())
    images.indices = np.delete(images.indices, 4)
    reader = FeatureReader(images, 8, STATISTICS, CPU, threads=1)
    return Task(reader, SPLIT, CLASSES, ("red", "green", "blue"), images.indices * 7 + 1)


@pytest.fixture
def labelled(task):
    return replace(task, labels=LABELS, classes=("not red", "green"))


def learn(protocol, task, backbone=None, seed=0, **more):
    return learn_labels(protocol, backbone or small_network(), task, seed, STEPS[protocol], **more)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("training", [True, False])
def test_the_given_backbone_is_left_as_it_is(task, protocol, training):
    backbone = small_network().train(training)
    backbone[0].requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    outcome = learn(protocol, task, backbone)
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())
    assert all(layer.training is training for layer in backbone.modules())
    assert all(parameter.grad is None for parameter in backbone.parameters())
    assert [parameter.requires_grad for parameter in backbone.parameters()] == [False, True, True]
    assert (outcome.backbone is not backbone) == PROTOCOLS[protocol].trains_backbone


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_answers_are_those_of_backbone_and_head_on_the_test_images(task, protocol):
    outcome = learn(protocol, task)
    for part, features, labels in zip(
        (SPLIT.train, SPLIT.validation, SPLIT.test), outcome.features, outcome.task.part_labels, strict=True
    ):
        np.testing.assert_allclose(features, task.reader.features(outcome.backbone, part), atol=1e-5)
        np.testing.assert_array_equal(labels, CLASSES[part])
    answers = outcome.head.probabilities(outcome.features.test).argmax(axis=1)
    np.testing.assert_array_equal(outcome.probabilities.argmax(axis=1), answers)
    assert outcome.test_score == pytest.approx((answers == CLASSES[SPLIT.test]).mean())
    on_validation = outcome.head.probabilities(outcome.features.validation).argmax(axis=1) == CLASSES[SPLIT.validation]
    assert outcome.validation_score == pytest.approx(on_validation.mean())
    assert outcome.test_score > 0.5


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_multilabel_truth_is_learned(labelled, protocol):
    outcome = learn(protocol, labelled)
    assert outcome.head.multilabel
    assert outcome.probabilities.shape == (len(SPLIT.test), 2)
    assert outcome.test_score == pytest.approx(roc_auc_score(LABELS[SPLIT.test], outcome.probabilities))
    assert outcome.test_score > 0.6


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_same_seed_gives_the_same_answers(task, protocol):
    few = replace(task, count=12)
    first, again, other = (learn(protocol, few, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.probabilities, again.probabilities)
    # As text, in which one NaN is as another.
    assert str((first.curve, first.hyperparameters, first.step)) == str(
        (again.curve, again.hyperparameters, again.step)
    )
    assert not np.array_equal(first.probabilities, other.probabilities)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(("count", "images"), [(6, 6), (0.2, 10), (1.0, 50), (50, 50), (None, 50)])
def test_the_wanted_number_of_labels_is_learned_from(task, protocol, count, images):
    outcome = learn(protocol, replace(task, count=count))
    assert len(outcome.features.train) == len(outcome.task.split.train) == images
    assert set(outcome.task.split.train) <= set(SPLIT.train)
    assert set(outcome.task.part_labels.train) == {0, 1, 2}
    np.testing.assert_array_equal(outcome.task.split.test, SPLIT.test)
    np.testing.assert_array_equal(outcome.task.split.validation, SPLIT.validation)


def test_labels_that_were_not_drawn_play_no_part(task):
    few = replace(task, count=9)
    drawn = learn("fast", few).task.split.train
    others = CLASSES.copy()
    left_out = np.setdiff1d(SPLIT.train, drawn)
    # Swapped among themselves, so that as many of each class are drawn from.
    others[left_out] = np.roll(others[left_out], 1)
    same = learn("fast", replace(few.with_drawn_labels(0), labels=others))
    np.testing.assert_array_equal(same.probabilities, learn("fast", few).probabilities)


def test_the_seed_says_which_labels_are_drawn(task):
    few = replace(task, count=9)
    drawn = [tuple(few.with_drawn_labels(seed).split.train) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert few.split.train is SPLIT.train


def test_too_few_labels_are_refused(task):
    with pytest.raises(HptError, match="2 images cannot hold one of each of 3 classes"):
        learn("fast", replace(task, count=2))


def test_the_fast_protocol_is_logistic_regression_on_features(task):
    outcome = learn("fast", task)
    regression = LogisticRegression(C=outcome.hyperparameters["regularisation"], max_iter=5000, tol=1e-8)
    by_sklearn = make_pipeline(StandardScaler(), regression)
    by_sklearn.fit(outcome.features.train, CLASSES[SPLIT.train])
    np.testing.assert_allclose(outcome.probabilities, by_sklearn.predict_proba(outcome.features.test), atol=0.01)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_curve_leads_to_the_step_that_was_taken(task, protocol):
    outcome = learn(protocol, task)
    by_step = {point.step: point for point in outcome.curve}
    assert sorted(by_step) == [point.step for point in outcome.curve]
    if outcome.step:
        assert by_step[outcome.step].validation_score == outcome.validation_score
    if protocol != "finetune":
        assert by_step[outcome.step].test_score == pytest.approx(outcome.test_score)


def test_every_step_of_the_paper_is_reported_and_their_number_is_the_given_one(task):
    reported = []
    outcome = learn("paper", task, on_step=lambda step, steps: reported.append((step, steps)))
    assert reported == [(step, 5) for step in range(1, 6)]
    assert outcome.curve[-1].step == 5


def test_a_head_that_was_still_learning_says_so(task, monkeypatch):
    monkeypatch.setattr("hpt_mlflow.evaluation.probe.LOOKS", (1,))
    outcome = learn("fast", task)
    assert "still getting better after 1 iterations" in outcome.warning
