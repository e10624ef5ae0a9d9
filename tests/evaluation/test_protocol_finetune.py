from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hpt_mlflow.data.statistics import ChannelStatistics
from hpt_mlflow.errors import HptError
from hpt_mlflow.evaluation.drawing import draw_labels
from hpt_mlflow.evaluation.features import FeatureReader
from hpt_mlflow.evaluation.labelled_views import TrainingViews
from hpt_mlflow.evaluation.protocols.finetune import FineTuneSettings, _train, count_views, fine_tune, schedule_for
from hpt_mlflow.evaluation.supervised import new_head

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


def reader_of(open_images):
    return FeatureReader(open_images(pictures()), 8, STATISTICS, CPU, threads=1)


def tune(open_images, truth=CLASSES, backbone=None, train=TRAIN, seed=0, on_step=None, autocast=None, **settings):
    defaults = {"iterations": 24, "epochs": 2, "batch_size": 8, "accumulate": 2, "validations": 3}
    return fine_tune(
        backbone or small_network(),
        reader_of(open_images),
        train,
        truth[train],
        VALIDATION,
        truth[VALIDATION],
        3 if truth.ndim == 1 else truth.shape[1],
        FineTuneSettings(**(defaults | settings)),
        seed,
        autocast,
        on_step,
    )


def test_the_defaults_are_the_papers():
    settings = FineTuneSettings()
    assert (settings.iterations, settings.epochs, settings.learning_rates) == (2500, 90, (0.01, 0.001))
    assert (settings.batch_size, settings.accumulate, settings.head_multiplier) == (64, 4, 100)
    assert settings.momentum == 0.9


def test_the_grid_has_every_schedule_with_every_rate(open_images):
    tuned = tune(open_images)
    rows = [(trial.schedule, trial.learning_rate, trial.iterations) for trial in tuned.trials]
    # 2 epochs of 36 images in batches of 8 are 9 iterations, and the optimiser steps at every second.
    assert rows == [
        ("24 iterations", 0.01, 24),
        ("24 iterations", 0.001, 24),
        ("2 epochs", 0.01, 8),
        ("2 epochs", 0.001, 8),
    ]
    assert [iteration for iteration, _ in tuned.trials[0].curve] == [8, 16, 24]
    assert tuned.trials[2].curve[-1][0] == 8


def test_a_schedule_can_be_left_out(open_images):
    assert [trial.schedule for trial in tune(open_images, iterations=None, learning_rates=(0.1,)).trials] == [
        "2 epochs"
    ]
    with pytest.raises(HptError, match="no schedule"):
        tune(open_images, iterations=None, epochs=None)


def test_the_result_is_the_checkpoint_that_was_best_on_validation(open_images):
    tuned = tune(open_images, validations=12)
    scores = [score for trial in tuned.trials for _, score in trial.curve]
    assert tuned.validation_score == max(scores)
    assert tuned.trial == max(tuned.trials, key=lambda trial: trial.validation_score)
    assert (tuned.trial.best_iteration, tuned.validation_score) in tuned.trial.curve
    features = reader_of(open_images).features(tuned.backbone, VALIDATION)
    found = tuned.head.probabilities(features).argmax(axis=1) == CLASSES[VALIDATION]
    assert found.mean() == pytest.approx(tuned.validation_score)
    assert not tuned.backbone.training


def test_colours_are_learned_and_all_weights_change(open_images):
    backbone = small_network()
    backbone[0].weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    tuned = tune(open_images, backbone=backbone)
    assert tuned.converged
    assert tuned.validation_score > 0.8
    for name, tensor in tuned.backbone.state_dict().items():
        assert not torch.equal(tensor, before[name]), name
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())
    assert not backbone[0].weight.requires_grad


def test_labels_are_learned_each_on_its_own(open_images):
    tuned = tune(open_images, truth=LABELS)
    assert tuned.head.multilabel
    assert tuned.head.weight.shape == (6, 2)
    assert tuned.validation_score > 0.8


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_fewer_labels_than_a_batch_are_enough(open_images, count):
    tuned = tune(open_images, train=TRAIN[:count], batch_size=64, learning_rates=(0.01,), epochs=4)
    # Each image is in each batch: an epoch is an iteration, but for a single image, which is there twice.
    assert tuned.trials[1].iterations == (2 if count == 1 else 4)
    assert tuned.backbone[0].weight.isfinite().all()


def settings_of(**values):
    return FineTuneSettings(batch_size=6, **values)


def test_accumulated_gradients_are_those_of_one_large_batch(open_images):
    """With BatchNorm's statistics frozen, three batches of six are one batch of 18."""
    images = open_images(pictures())
    views = TrainingViews(images, TRAIN, 8, STATISTICS, CPU, 6, 0, 1)
    network, head = small_network(), new_head(6, 3, 0)
    network.train = lambda mode=True: nn.Module.train(network, False)
    whole_network, whole_head = small_network().eval(), new_head(6, 3, 0)
    list(_train(network, head, views, CLASSES[TRAIN], 9, 0.01, settings_of(accumulate=3), None, 0))

    optimizer = torch.optim.SGD(
        [{"params": whole_network.parameters()}, {"params": whole_head.parameters(), "lr": 1.0}], lr=0.01, momentum=0.9
    )
    batches = list(views.batches(9))
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


def test_batch_norm_is_in_training_mode_between_validations(open_images):
    views = TrainingViews(open_images(pictures()), TRAIN, 8, STATISTICS, CPU, 6, 0, 1)
    network = small_network()
    for _ in _train(network, new_head(6, 3, 0), views, CLASSES[TRAIN], 4, 0.01, settings_of(accumulate=2), None, 0):
        assert network.training
        network.eval()  # as a validation might leave it
    assert network[1].num_batches_tracked == 4


def test_the_same_seed_gives_the_same_result_and_another_another(open_images):
    heads = [tune(open_images, seed=seed).head for seed in (0, 0, 1)]
    assert torch.equal(heads[0].weight, heads[1].weight)
    assert not torch.equal(heads[0].weight, heads[2].weight)


def test_iterations_are_told_over_the_whole_grid(open_images):
    told = []
    tune(open_images, on_step=lambda step, of: told.append((step, of)))
    assert told == [(step, 64) for step in range(1, 65)]


def test_bfloat16_can_be_chosen(open_images):
    tuned = tune(open_images, autocast=torch.bfloat16, learning_rates=(0.01,))
    assert tuned.head.weight.dtype == torch.float32
    assert tuned.validation_score > 0.6


def test_a_trial_whose_loss_is_not_finite_says_so_and_another_wins(open_images):
    tuned = tune(open_images, learning_rates=(1e30, 0.01), epochs=None)
    assert "finite" in tuned.trials[0].reason
    assert tuned.trial == tuned.trials[1]
    assert tuned.converged


def test_where_no_trial_comes_to_anything_the_backbone_is_as_it_was(open_images):
    backbone = small_network()
    tuned = tune(open_images, backbone=backbone, learning_rates=(1e30,), epochs=None)
    assert not tuned.converged
    assert "learning_rate 1e+30" in tuned.reason
    assert tuned.trial.best_iteration == 0
    assert torch.equal(tuned.backbone[0].weight, backbone[0].weight)
    assert tuned.head.weight.isfinite().all()


@pytest.mark.parametrize("count", [4, 10, 40, 99, 1.0, 0.1, 0.5])
@pytest.mark.parametrize("seed", range(3))
def test_so_many_images_are_drawn_with_one_of_each_class(count, seed):
    labels = np.random.default_rng(9).permutation(np.repeat([0, 1, 2, 5], [60, 30, 8, 2]))
    drawn = draw_labels(labels, count, seed)
    assert len(drawn) == (count if isinstance(count, int) else round(count * 100))
    assert (np.diff(drawn) > 0).all()
    assert drawn.dtype == np.int64
    assert set(labels[drawn]) == {0, 1, 2, 5}


def test_classes_are_drawn_in_proportion():
    labels = np.repeat([0, 1, 2], [600, 300, 100])
    counts = np.bincount(labels[draw_labels(labels, 100, 0)])
    np.testing.assert_allclose(counts, [60, 30, 10], atol=1)


def test_more_labels_than_there_are_means_all():
    assert draw_labels(CLASSES, 1000, 0).tolist() == list(range(60))
    assert draw_labels(CLASSES, 1.0, 0).tolist() == list(range(60))
    assert draw_labels(LABELS, 1000, 0).tolist() == list(range(60))


def test_the_seed_decides_what_is_drawn():
    for truth in (CLASSES, LABELS):
        assert draw_labels(truth, 9, 1).tolist() == draw_labels(truth, 9, 1).tolist()
        assert draw_labels(truth, 9, 1).tolist() != draw_labels(truth, 9, 2).tolist()


def test_every_image_of_a_class_may_be_drawn():
    counts = sum(np.bincount(draw_labels(CLASSES, 6, seed), minlength=60) for seed in range(300))
    # Each of the 60 images is drawn with a probability of 0.1: 30 times, give or take 5.2.
    assert counts.min() > 10
    assert counts.max() < 55


@pytest.mark.parametrize("seed", range(5))
def test_an_image_with_each_label_is_drawn(seed):
    labels = (np.random.default_rng(0).random((300, 6)) < [0.5, 0.2, 0.1, 0.02, 0.01, 0]).astype(np.uint8)
    drawn = draw_labels(labels, 8, seed)
    assert len(set(drawn)) == 8
    np.testing.assert_array_equal(labels[drawn].any(axis=0), labels.any(axis=0))


@pytest.mark.parametrize(
    ("labels", "count", "words"),
    [
        (CLASSES, 2, "2 images cannot hold one of each of 3 classes; ask for 3"),
        (CLASSES, 0.01, "1 images cannot hold one of each of 3"),
        (CLASSES, 0, "0 is no number"),
        (CLASSES, 1.5, "1.5 is no fraction"),
        (CLASSES, 0.0, "0.0 is no fraction"),
        (np.eye(4, dtype=np.uint8), 3, "3 images cannot hold one with each of 4 labels; ask for 4"),
    ],
)
def test_numbers_that_cannot_be_drawn_are_refused(labels, count, words):
    with pytest.raises(HptError, match=words) as caught:
        draw_labels(labels, count, 0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("images", [36, 5])
def test_views_are_counted_as_they_are_learned_from(open_images, images):
    told = []
    tune(open_images, train=TRAIN[:images], on_step=lambda step, of: told.append(of))
    settings = FineTuneSettings(iterations=24, epochs=2, batch_size=8, accumulate=2, validations=3)
    assert count_views(settings, images) == len(told) * min(8, images) == told[-1] * min(8, images)


def test_a_length_that_is_given_takes_the_place_of_both_schedules():
    assert schedule_for(None) == FineTuneSettings()
    assert schedule_for(7) == FineTuneSettings(iterations=7, epochs=None)
