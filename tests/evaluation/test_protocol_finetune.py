from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hpt_mlflow.data.split import Split
from hpt_mlflow.data.statistics import ChannelStatistics
from hpt_mlflow.evaluation.features import FeatureReader
from hpt_mlflow.evaluation.labelled_views import TrainingViews
from hpt_mlflow.evaluation.protocols.finetune import (
    PASSES,
    Finetune,
    FineTuneSettings,
    Schedule,
    _settings,
    _train,
    fine_tune,
)
from hpt_mlflow.evaluation.supervised import new_head
from hpt_mlflow.evaluation.task import Task

CPU = torch.device("cpu")
STATISTICS = ChannelStatistics((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
CLASSES = np.array([0, 1, 2] * 20)
LABELS = np.stack([CLASSES > 0, CLASSES == 1], axis=1).astype(np.uint8)
TRAIN, VALIDATION = np.arange(36), np.arange(36, 60)


def pictures():
    """Images that are red, green or blue by their class, with noise."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 120, (60, 10, 12, 3))
    images[np.arange(60), :, :, CLASSES] += 110
    return list(images.astype(np.uint8))


def small_network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
    )


FEW = {"iterations": 24, "epochs": 2, "batch_size": 8, "accumulate": 2, "validations": 3}


@pytest.fixture
def task_of(open_images):
    """A task of classes or labels, whose test images are those of validation."""

    def task(truth=CLASSES, train=TRAIN):
        reader = FeatureReader(open_images(pictures()), 8, STATISTICS, CPU, threads=1)
        names = ("red", "green", "blue") if truth.ndim == 1 else ("not red", "green")
        return Task(reader, Split(train, VALIDATION, VALIDATION), truth, names, np.arange(60))

    return task


@pytest.fixture
def tune(task_of):
    """Fine-tunes with a grid of short trainings."""

    def tuned(truth=CLASSES, backbone=None, train=TRAIN, seed=0, on_step=None, **settings):
        settings = FineTuneSettings(**(FEW | settings))
        return fine_tune(backbone or small_network(), task_of(truth, train), settings, seed, on_step)

    return tuned


def test_the_defaults_are_the_papers():
    settings = FineTuneSettings()
    assert (settings.iterations, settings.epochs, settings.learning_rates) == (2500, 90, (0.01, 0.001))
    assert (settings.batch_size, settings.accumulate, settings.head_multiplier) == (64, 4, 100)
    assert settings.momentum == 0.9


def test_the_grid_has_every_schedule_with_every_rate(tune):
    trials = tune().trials
    rows = list(zip(trials["schedule"], trials["learning_rate"], trials["iterations"], strict=True))
    # 2 epochs of 36 images in batches of 8 are 9 iterations, and the optimiser steps at every second.
    assert rows == [
        ("24 iterations", 0.01, 24),
        ("24 iterations", 0.001, 24),
        ("2 epochs", 0.01, 8),
        ("2 epochs", 0.001, 8),
    ]


def test_a_schedule_can_be_left_out(tune):
    tuned = tune(iterations=None, learning_rates=(0.1,))
    assert tuned.trials["schedule"] == ["2 epochs"]
    assert tuned.curve[-1].step == 8


def test_validations_are_at_even_intervals(tune):
    assert [point.step for point in tune(epochs=None).curve] == [8, 16, 24]


def test_the_result_is_the_checkpoint_that_was_best_on_validation(tune):
    tuned = tune(validations=12)
    scores = tuned.trials["validation_score"]
    best = scores.index(max(scores))
    assert tuned.validation_score == scores[best] == max(point.validation_score for point in tuned.curve)
    assert tuned.step == tuned.trials["best_iteration"][best]
    assert tuned.hyperparameters == {"learning_rate": tuned.trials["learning_rate"][best]}
    assert (tuned.step, tuned.validation_score) in [point[:2] for point in tuned.curve]
    features = tuned.task.reader.features(tuned.backbone, VALIDATION)
    found = tuned.head.probabilities(features).argmax(axis=1) == CLASSES[VALIDATION]
    assert found.mean() == pytest.approx(tuned.validation_score)
    assert not tuned.backbone.training


def test_colours_are_learned_and_all_weights_change(tune):
    backbone = small_network()
    backbone[0].weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    tuned = tune(backbone=backbone)
    assert tuned.warning == ""
    assert tuned.validation_score > 0.8
    for name, tensor in tuned.backbone.state_dict().items():
        assert not torch.equal(tensor, before[name]), name
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())
    assert not backbone[0].weight.requires_grad


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_fewer_labels_than_a_batch_are_enough(tune, count):
    tuned = tune(train=TRAIN[:count], batch_size=64, learning_rates=(0.01,), epochs=4)
    # Each image is in each batch: an epoch is an iteration, but for a single image, which is there twice.
    assert tuned.trials["iterations"][1] == (2 if count == 1 else 4)
    assert tuned.backbone[0].weight.isfinite().all()


def settings_of(**values):
    return FineTuneSettings(batch_size=6, **values)


def test_accumulated_gradients_are_those_of_one_large_batch(task_of):
    """With BatchNorm's statistics frozen, three batches of six are one batch of 18."""
    task = task_of()
    network, head = small_network(), new_head(6, 3, 0)
    network.train = lambda mode=True: nn.Module.train(network, False)
    whole_network, whole_head = small_network().eval(), new_head(6, 3, 0)
    list(_train(network, head, task, Schedule("", 0.01, 9), settings_of(accumulate=3), 0))

    optimizer = torch.optim.SGD(
        [{"params": whole_network.parameters()}, {"params": whole_head.parameters(), "lr": 1.0}], lr=0.01, momentum=0.9
    )
    batches = list(TrainingViews(task.reader, TRAIN, 6, 0).batches(9))
    for update in range(3):
        chosen = batches[3 * update : 3 * update + 3]
        inputs = torch.cat([batch.views for batch in chosen])
        truth = torch.from_numpy(np.concatenate([CLASSES[batch.positions] for batch in chosen]))
        optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"] = 0.01 / 10**update, 1.0 / 10**update
        optimizer.zero_grad()
        F.cross_entropy(whole_head(whole_network(inputs).flatten(1)), truth).backward()
        optimizer.step()
    for one, other in zip(network.parameters(), whole_network.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(head.weight, whole_head.weight, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(head.bias, whole_head.bias, atol=1e-5, rtol=1e-4)


def test_batch_norm_is_in_training_mode_between_validations(task_of):
    network, schedule = small_network(), Schedule("", 0.01, 4)
    for _ in _train(network, new_head(6, 3, 0), task_of(), schedule, settings_of(accumulate=2), 0):
        assert network.training
        network.eval()  # as a validation might leave it
    assert network[1].num_batches_tracked == 4


def test_a_trial_whose_loss_is_not_finite_says_so_and_another_wins(tune):
    tuned = tune(learning_rates=(1e30, 0.01), epochs=None)
    assert "finite" in tuned.trials["reason"][0]
    assert tuned.hyperparameters == {"learning_rate": 0.01}
    assert tuned.warning == ""


def test_if_no_training_converges_the_backbone_is_as_it_was(tune):
    backbone = small_network()
    tuned = tune(backbone=backbone, learning_rates=(1e30,), epochs=None)
    assert "learning_rate 1e+30" in tuned.warning
    assert tuned.step == 0
    assert torch.equal(tuned.backbone[0].weight, backbone[0].weight)
    assert tuned.head.weight.isfinite().all()


@pytest.mark.parametrize("images", [36, 5])
def test_iterations_are_reported_over_the_whole_grid_and_make_the_cost(task_of, images):
    reported = []
    task = task_of(train=TRAIN[:images])
    Finetune().learn(small_network(), task, 0, 8, lambda step, total: reported.append((step, total)))
    assert reported == [(step, 16) for step in range(1, 17)]
    assert Finetune().passes(images, 8) == PASSES * len(reported) * min(64, images)


def test_a_given_length_replaces_both_schedules():
    assert _settings(None) == FineTuneSettings()
    assert _settings(7) == FineTuneSettings(iterations=7, epochs=None)
