from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import mlflow
import numpy as np
import pytest
import torch
from mlflow.tracking import MlflowClient
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from hpt_mlflow.data.split import Split
from hpt_mlflow.evaluation.head import plain_head
from hpt_mlflow.evaluation.protocols.base import Outcome
from hpt_mlflow.evaluation.supervised import CurvePoint
from hpt_mlflow.evaluation.task import Parts, Task
from hpt_mlflow.stages.evaluation.metrics import (
    baseline_metrics,
    metric_names,
    outcome_metrics,
    repeat_metrics,
)

CLASSES = np.random.default_rng(3).choice(4, size=300, p=[0.55, 0.15, 0.15, 0.15])
LABELS = (np.random.default_rng(4).random((300, 3)) < [0.5, 0.3, 0.1]).astype(np.uint8)
SPLIT = Split(np.arange(120), np.arange(120, 200), np.arange(200, 300))


def outcome(truth=CLASSES, skill=1.0, seed=0, names=("a", "b", "c", "d")):
    """Answers that are right the more often, the more skill."""
    rng = np.random.default_rng(seed)
    multilabel = truth.ndim == 2
    wanted = truth if multilabel else np.eye(4)[truth]
    scores = skill * wanted + rng.normal(size=wanted.shape)
    # The last features are the scores, which the head passes on.
    features = np.hstack([wanted @ rng.normal(size=(wanted.shape[1], 6)) + rng.normal(size=(300, 6)), scores])
    features = features.astype(np.float32)
    parts = Parts(*(features[part] for part in (SPLIT.train, SPLIT.validation, SPLIT.test)))
    task = Task(SimpleNamespace(), SPLIT, truth, names[: wanted.shape[1]], np.arange(300))
    classes = wanted.shape[1]
    head = plain_head(torch.eye(6 + classes)[:, 6:], torch.zeros(classes), multilabel)
    curve = [CurvePoint(10, 0.5, 0.4), CurvePoint(20, 0.6, 0.5)]
    return Outcome(nn.Identity(), head, parts, task, 0.625, curve, 20, {"regularisation": 0.1})


def right(one):
    return one.probabilities.argmax(axis=1) == CLASSES[SPLIT.test]


def test_figures_of_classes_have_intervals_around_them():
    one = outcome()
    figures = outcome_metrics("fast", one)
    assert figures["test/accuracy"] == pytest.approx(right(one).mean())
    balanced = balanced_accuracy_score(CLASSES[SPLIT.test], one.probabilities.argmax(axis=1))
    assert figures["test/balanced_accuracy"] == pytest.approx(balanced)
    for name in ("test/accuracy", "test/balanced_accuracy"):
        assert figures[f"{name}_low"] < figures[name] < figures[f"{name}_high"]
    share = right(one).mean()
    deviation = np.sqrt(share * (1 - share) / 100)
    width = figures["test/accuracy_high"] - figures["test/accuracy_low"]
    assert width == pytest.approx(2 * 1.96 * deviation, rel=0.15)
    assert (figures["probe/val_accuracy"], figures["probe/step"]) == (0.625, 20)
    assert (figures["probe/regularisation"], figures["probe/converged"]) == (0.1, 1)
    assert 0 <= figures["test/calibration_error"] <= 1
    assert outcome_metrics("fast", replace(one, warning="it was still learning"))["probe/converged"] == 0


def test_neighbours_vote_by_cosine_on_both_parts():
    one = outcome()
    figures = outcome_metrics("fast", one)
    voters = KNeighborsClassifier(20, metric="cosine").fit(one.features.train, CLASSES[SPLIT.train])
    for part, asked, indices in (
        ("val", one.features.validation, SPLIT.validation),
        ("test", one.features.test, SPLIT.test),
    ):
        expected = voters.score(asked, CLASSES[indices])
        # Votes may be weighted, and ties be broken otherwise.
        assert figures[f"knn/{part}_accuracy"] == pytest.approx(expected, abs=0.05)
    assert figures["knn/test_accuracy_low"] < figures["knn/test_accuracy"] < figures["knn/test_accuracy_high"]


def test_what_was_fine_tuned_is_not_called_a_probe():
    figures = outcome_metrics("finetune", outcome())
    assert figures["finetune/val_accuracy"] == 0.625
    assert not [name for name in figures if name.startswith("probe/")]


def test_figures_of_labels_are_areas_under_curves():
    one = outcome(LABELS, names=("Edema", "No Finding", "A+B"))
    figures = outcome_metrics("fast", one)
    truth = LABELS[SPLIT.test]
    areas = roc_auc_score(truth, one.probabilities, average=None)
    assert figures["test/auroc"] == pytest.approx(areas.mean())
    for name, area in zip(("Edema", "No Finding", "A_B"), areas, strict=True):
        assert figures[f"test/auroc/{name}"] == pytest.approx(area)
        assert figures[f"test/auroc/{name}_low"] < area < figures[f"test/auroc/{name}_high"] <= 1
    assert figures["probe/val_auroc"] == 0.625
    assert not [name for name in figures if "accuracy" in name]


def test_a_label_that_no_test_image_has_is_left_out():
    truth = LABELS.copy()
    truth[SPLIT.test, 1] = 0
    figures = outcome_metrics("fast", outcome(truth))
    assert "test/auroc/b" not in figures
    assert all(np.isfinite(value) for value in figures.values())


def test_repetitions_have_a_mean_and_a_spread():
    outcomes = [outcome(skill=skill, seed=seed) for seed, skill in enumerate((0.5, 1.0, 2.0))]
    scores = [right(one).mean() for one in outcomes]
    figures = repeat_metrics(outcomes)
    assert figures["repeats/accuracy_mean"] == pytest.approx(np.mean(scores))
    assert figures["repeats/accuracy_std"] == pytest.approx(np.std(scores, ddof=1))
    assert figures["repeats/count"] == 3
    assert repeat_metrics(outcomes[:1]) == {}
    assert set(repeat_metrics([outcome(LABELS), outcome(LABELS)])) >= {"repeats/auroc_mean", "repeats/auroc_std"}


def test_the_gain_is_the_difference_to_the_untrained_network():
    learned, untrained = outcome(skill=2.0), outcome(skill=0.5, seed=1)
    figures = baseline_metrics(learned, untrained)
    assert figures["random/accuracy"] == pytest.approx(right(untrained).mean())
    assert figures["gain/accuracy"] == pytest.approx(right(learned).mean() - right(untrained).mean())
    assert figures["gain/accuracy_low"] < figures["gain/accuracy"] < figures["gain/accuracy_high"]
    balanced = balanced_accuracy_score(CLASSES[SPLIT.test], untrained.probabilities.argmax(axis=1))
    assert figures["random/balanced_accuracy"] == pytest.approx(balanced)
    assert figures["random/knn_accuracy"] == outcome_metrics("fast", untrained)["knn/test_accuracy"]


def test_of_no_difference_the_gain_is_nothing():
    figures = baseline_metrics(outcome(), outcome())
    assert (figures["gain/accuracy"], figures["gain/accuracy_low"], figures["gain/accuracy_high"]) == (0, 0, 0)


def test_chance_is_the_class_that_is_largest_in_train():
    truth = CLASSES.copy()
    truth[SPLIT.train] = np.arange(120) % 2  # 0 and 1 alike: the first
    truth[:1] = 1
    one = outcome(truth)
    assert baseline_metrics(one, None) == {"chance/accuracy": (truth[SPLIT.test] == 1).mean()}


def test_labels_are_compared_by_the_area_under_the_curve():
    learned, untrained = outcome(LABELS, 2.0), outcome(LABELS, 0.5, seed=1)
    figures = baseline_metrics(learned, untrained)
    truth = LABELS[SPLIT.test]
    difference = roc_auc_score(truth, learned.probabilities) - roc_auc_score(truth, untrained.probabilities)
    assert figures["gain/auroc"] == pytest.approx(difference)
    assert figures["chance/auroc"] == 0.5
    assert set(figures) == {"chance/auroc", "random/auroc", "gain/auroc", "gain/auroc_low", "gain/auroc_high"}


ODD = ["Ödem", "犬", "A+B", "A&B", "A_B", "x:y", "a/b", "a//b", "..", ".", "../x", "/", "v1.0", "½", "a\tb", "x" * 400]


def test_mlflow_takes_every_label_in_the_name_of_a_metric_and_keeps_them_apart(store):
    names = metric_names(["Edema", "No Finding", *ODD])
    assert (names["Edema"], names["No Finding"], names["犬"]) == ("Edema", "No Finding", "犬")
    assert len(set(names.values())) == len(ODD) + 2
    logged = {f"test/auroc/{name}{end}": i for i, name in enumerate(names.values()) for end in ("", "_low", "_high")}
    with mlflow.start_run() as run:
        mlflow.log_metrics(logged)
    assert MlflowClient().get_run(run.info.run_id).data.metrics == logged


def test_labels_that_differ_only_in_what_mlflow_does_not_take_have_their_own_figures():
    one = outcome(LABELS, names=("A+B", "A&B", "A_B"))
    figures = outcome_metrics("fast", one)
    areas = roc_auc_score(LABELS[SPLIT.test], one.probabilities, average=None)
    for name, area in zip(metric_names(("A+B", "A&B", "A_B")).values(), areas, strict=True):
        assert figures[f"test/auroc/{name}"] == pytest.approx(area)
