from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hpt_mlflow.data.split import Split
from hpt_mlflow.data.statistics import ChannelStatistics
from hpt_mlflow.evaluation.features import FeatureReader
from hpt_mlflow.evaluation.head import plain_head
from hpt_mlflow.evaluation.labelled_views import TrainingViews
from hpt_mlflow.evaluation.protocols.paper import PaperProbeSettings, fit_paper_probe
from hpt_mlflow.evaluation.supervised import (
    as_linear_head,
    chance,
    learning_rate_at,
    new_head,
    score_of,
    supervised_loss,
    targets,
    why_not_converged,
)
from hpt_mlflow.evaluation.task import Task

CPU = torch.device("cpu")
STATISTICS = ChannelStatistics((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
CLASSES = np.array([0, 1, 2] * 20)
LABELS = np.stack([CLASSES > 0, CLASSES == 1], axis=1).astype(np.uint8)
SPLIT = Split(np.arange(30), np.arange(30, 45), np.arange(45, 60))


def pictures():
    """Images that are red, green or blue by their class, with noise."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 120, (60, 10, 12, 3))
    images[np.arange(60), :, :, CLASSES] += 110
    return list(images.astype(np.uint8))


def small_network():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    layers[1].running_mean.fill_(0.1)
    return layers


@pytest.fixture
def fit(open_images):
    """Trains a probe with few and short steps."""

    def fitted(truth=CLASSES, seed=0, backbone=None, on_step=None, precision="float32", **settings):
        reader = FeatureReader(open_images(pictures()), 8, STATISTICS, CPU, threads=1, precision=precision)
        names = ("red", "green", "blue") if truth.ndim == 1 else ("not red", "green")
        task = Task(reader, SPLIT, truth, names, np.arange(60))
        settings = PaperProbeSettings(**({"steps": 30, "batch_size": 16, "validate_every": 10} | settings))
        return fit_paper_probe(backbone or small_network(), task, settings, seed, on_step)

    return fitted


def test_the_defaults_are_the_papers():
    settings = PaperProbeSettings()
    assert (settings.steps, settings.batch_size, settings.learning_rate) == (5000, 512, 30.0)
    assert (settings.momentum, settings.validate_every) == (0.9, 100)


@pytest.mark.parametrize(("steps", "first", "second"), [(5000, 1667, 3333), (2500, 833, 1667), (90, 30, 60), (3, 1, 2)])
def test_the_rate_drops_by_ten_at_each_third(steps, first, second):
    rates = [learning_rate_at(30.0, step, steps) for step in range(steps)]
    np.testing.assert_allclose(rates, [30.0] * first + [3.0] * (second - first) + [0.3] * (steps - second))


@pytest.mark.parametrize("truth", [CLASSES, LABELS], ids=["classes", "labels"])
def test_the_head_takes_the_steps_of_sgd_with_momentum_written_out(fit, truth):
    probe = fit(truth, learning_rate=2.0, steps=6, validate_every=6)
    views, backbone = TrainingViews(probe.task.reader, SPLIT.train, 16, 0), small_network()
    start = new_head(6, 3 if truth.ndim == 1 else 2, 0)
    weight, bias = start.weight.detach().T.clone(), start.bias.detach().clone()  # F x C, C
    velocities = torch.zeros_like(weight), torch.zeros_like(bias)
    backbone.eval()
    for step, batch in enumerate(views.batches(6)):
        with torch.no_grad():
            features = backbone(batch.views).flatten(1)
        y = torch.from_numpy(truth[SPLIT.train][batch.positions])
        logits = features @ weight + bias
        # The gradient by the logits: predicted minus true, over the images, and over the labels where there are two.
        true = F.one_hot(y, 3) if truth.ndim == 1 else y
        predicted = logits.softmax(dim=1) if truth.ndim == 1 else logits.sigmoid()
        error = (predicted - true) / (16 if truth.ndim == 1 else 16 * 2)
        rate = 2.0 / 10 ** (step // 2)
        for value, velocity, gradient in (
            (weight, velocities[0], features.T @ error),
            (bias, velocities[1], error.sum(0)),
        ):
            velocity.mul_(0.9).add_(gradient)
            value.sub_(rate * velocity)
    expected = plain_head(weight, bias)
    assert probe.step == 6
    torch.testing.assert_close(probe.head.weight, expected.weight, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(probe.head.bias, expected.bias, atol=1e-5, rtol=1e-4)


def test_the_best_by_validation_is_kept_with_its_test_score(fit):
    probe = fit(steps=35, validate_every=10)
    assert [point.step for point in probe.curve] == [10, 20, 30, 35]
    best = max(probe.curve, key=lambda point: point.validation_score)
    assert (probe.step, probe.validation_score, probe.test_score) == best
    found = probe.head.probabilities(probe.features.validation).argmax(axis=1)
    assert (found == CLASSES[SPLIT.validation]).mean() == pytest.approx(probe.validation_score)


def test_a_batch_may_be_larger_than_train(fit):
    probe = fit(batch_size=100, steps=3)
    assert len(probe.curve) == 1


def test_a_loss_that_is_not_finite_ends_the_training_with_a_warning(fit):
    probe = fit(learning_rate=float("inf"), steps=30)
    assert "finite" in probe.warning
    assert "learning_rate inf" in probe.warning
    assert "\n" not in probe.warning
    assert probe.curve == []
    assert probe.head.weight.isfinite().all()


def test_features_without_information_do_not_converge(fit):
    class Blind(nn.Module):
        def forward(self, images):
            return images.new_ones(len(images), 2)

    assert "accuracy on validation never rose above 0.333" in fit(backbone=Blind()).warning


def test_chance_is_the_same_answer_for_all():
    assert chance(np.array([0, 0, 0, 1])) == 0.75
    assert chance(LABELS) == 0.5


def test_reasons_in_words():
    assert why_not_converged(0.5, 100, CLASSES, None, 30.0) == ""
    assert "by step 300" in why_not_converged(0.5, 200, CLASSES, 300, 30.0)
    assert "never rose above 0.333, which the same answer" in why_not_converged(float("nan"), 0, CLASSES, None, 30.0)
    assert "never rose above 0.333, which the same answer" in why_not_converged(0.3, 100, CLASSES, None, 30.0)
    assert "never rose above 0.400, which the head before" in why_not_converged(0.4, 0, CLASSES, None, 30.0)


def test_ranks_are_judged_before_probabilities_round_to_one():
    head = plain_head(torch.full((1, 1), 100.0), torch.zeros(1), multilabel=True)
    features = np.array([[0.5], [0.6], [0.7], [0.8]], np.float32)
    truth = np.array([[0], [0], [1], [1]], np.uint8)
    assert (head.probabilities(features) == 1).all()
    assert score_of(head, features, truth) == 1.0


def test_a_new_head_is_normal_and_its_copy_gives_the_same_logits():
    layer = new_head(200, 50, 3)
    assert layer.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not layer.bias.any()
    assert torch.equal(layer.weight, new_head(200, 50, 3).weight)
    features = torch.randn(4, 200)
    torch.testing.assert_close(as_linear_head(layer, False).logits(features), layer(features))


def test_losses_are_those_of_their_definition():
    logits = torch.randn(5, 3)
    classes, labels = np.array([0, 2, 1, 1, 0]), np.array([[1, 0, 1]] * 5, np.uint8)
    p = logits.sigmoid()
    by_label = -torch.where(torch.from_numpy(labels) == 1, p.log(), (1 - p).log()).mean()
    by_class = -logits.softmax(dim=1).log()[torch.arange(5), torch.from_numpy(classes)].mean()
    torch.testing.assert_close(supervised_loss(logits, targets(labels, CPU)), by_label)
    torch.testing.assert_close(supervised_loss(logits, targets(classes, CPU)), by_class)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_probe_learns_from_features_as_it_is_judged_by(fit, precision):
    seen = []

    class Seen(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = small_network()

        def forward(self, images):
            features = self.network(images)
            seen.append(self.network[0](images).dtype)
            return features

    fit(steps=2, backbone=Seen(), precision=precision)
    assert set(seen) == {getattr(torch, precision)}
