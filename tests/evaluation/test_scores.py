from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, roc_auc_score

from hpt_mlflow.evaluation.scores import (
    balanced_accuracy,
    is_multilabel,
    label_aurocs,
    primary_name,
    primary_score,
)


def by_pairs(truth, scores):
    """The share of pairs of an image with and one without the label that are in order; ties count half."""
    differences = scores[truth == 1][:, None] - scores[truth == 0][None]
    return float(((differences > 0) + 0.5 * (differences == 0)).mean())


def random_labels(images=200, labels=5, levels=None):
    rng = np.random.default_rng(0)
    truth = (rng.random((images, labels)) < [0.5, 0.3, 0.1, 0.03, 0.9][:labels]).astype(np.uint8)
    scores = rng.random((images, labels)) + 0.3 * truth
    if levels:
        scores = np.round(scores * levels) / levels
    return truth, scores.astype(np.float32)


def test_the_area_under_a_small_curve_by_hand():
    truth = np.array([[1], [0], [1], [0]], np.uint8)
    # Of the pairs (0.9 over 0.8), (0.9 over 0.1), (0.7 over 0.8) and (0.7 over 0.1), three are in order.
    assert label_aurocs(truth, np.array([[0.9], [0.8], [0.7], [0.1]], np.float32)).tolist() == [0.75]
    assert label_aurocs(truth, np.full((4, 1), 0.5, np.float32)).tolist() == [0.5]


@pytest.mark.parametrize("levels", [None, 4])
def test_the_area_under_the_curve_is_that_of_all_pairs(levels):
    truth, scores = random_labels(levels=levels)
    expected = [by_pairs(truth[:, label], scores[:, label]) for label in range(5)]
    np.testing.assert_allclose(label_aurocs(truth, scores), expected, rtol=1e-12)


@pytest.mark.parametrize("levels", [None, 4])
def test_the_areas_are_those_of_scikit_learn(levels):
    truth, scores = random_labels(levels=levels)
    np.testing.assert_array_equal(label_aurocs(truth, scores), roc_auc_score(truth, scores, average=None))
    assert primary_score(truth, scores) == pytest.approx(roc_auc_score(truth, scores, average="macro"), abs=1e-15)


def test_labels_that_cannot_be_judged_do_not_count_in_the_mean():
    truth, scores = random_labels(labels=3)
    truth[:, 0], truth[:, 2] = 0, 1
    areas = label_aurocs(truth, scores)
    assert np.isnan(areas[[0, 2]]).all()
    assert primary_score(truth, scores) == areas[1] == roc_auc_score(truth[:, 1], scores[:, 1])


def test_accuracy_is_that_of_scikit_learn():
    rng = np.random.default_rng(1)
    truth, scores = rng.integers(0, 4, 100), rng.random((100, 4)).astype(np.float32)
    assert primary_score(truth, scores) == accuracy_score(truth, scores.argmax(axis=1))
    assert primary_score(truth, scores) == np.mean([scores[i, c] == scores[i].max() for i, c in enumerate(truth)])
    assert balanced_accuracy(truth, scores) == balanced_accuracy_score(truth, scores.argmax(axis=1))


def test_the_shape_of_the_truth_says_what_is_scored():
    assert primary_name(np.array([0, 1])) == "accuracy"
    assert primary_name(np.array([[0, 1]], np.uint8)) == "auroc"
    assert is_multilabel(np.array([[0, 1]], np.uint8))
