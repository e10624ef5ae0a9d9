from __future__ import annotations

import math

import numpy as np
import pytest

from hpt_mlflow.evaluation.calibration import reliability


def guo(confidences, right, bins: int) -> float:
    """Equations 1 to 3 of Guo et al., ICML 2017, as they are written."""
    total = 0.0
    for m in range(1, bins + 1):
        members = [i for i, p in enumerate(confidences) if (m - 1) / bins < p <= m / bins]
        if members:
            accuracy = sum(bool(right[i]) for i in members) / len(members)
            confidence = sum(float(confidences[i]) for i in members) / len(members)
            total += len(members) / len(confidences) * abs(accuracy - confidence)
    return total


@pytest.mark.parametrize("bins", [1, 4, 15])
@pytest.mark.parametrize("classes", [2, 7])
def test_error_is_that_of_the_paper(classes, bins):
    rng = np.random.default_rng(classes)
    probabilities = rng.dirichlet(np.ones(classes), 300).astype(np.float32)
    truth = rng.integers(0, classes, 300)
    expected = guo(probabilities.max(axis=1), probabilities.argmax(axis=1) == truth, bins)
    assert reliability(truth, probabilities, bins).expected_calibration_error == pytest.approx(expected, abs=1e-6)


def test_error_of_labels_pools_the_decision_on_each():
    rng = np.random.default_rng(0)
    probabilities = rng.random((100, 5), dtype=np.float32)
    truth = rng.integers(0, 2, (100, 5)).astype(np.uint8)
    confidences = [max(p, 1 - p) for p in probabilities.ravel()]
    right = [(p >= 0.5) == bool(t) for p, t in zip(probabilities.ravel(), truth.ravel(), strict=True)]
    assert reliability(truth, probabilities).expected_calibration_error == pytest.approx(
        guo(confidences, right, 15), abs=1e-6
    )


def test_sure_and_right_has_no_error_sure_and_wrong_has_all():
    probabilities = np.eye(3, dtype=np.float32)
    assert reliability(np.arange(3), probabilities).expected_calibration_error == 0
    assert reliability((np.arange(3) + 1) % 3, probabilities).expected_calibration_error == 1


def test_bins_hold_every_decision_once():
    probabilities = np.array([[0.5, 0.5], [0.0, 1.0], [0.74, 0.26], [0.24, 0.76]])
    found = reliability(np.array([0, 0, 0, 1]), probabilities, bins=4)
    assert found.counts.tolist() == [0, 1, 1, 2]
    assert found.accuracy[1:].tolist() == [1, 1, 0.5]
    assert found.confidence[1:].tolist() == pytest.approx([0.5, 0.74, 0.88])
    assert math.isnan(found.accuracy[0])
    assert math.isnan(found.confidence[0])


def test_no_decisions_have_no_error():
    assert math.isnan(
        reliability(np.zeros(0, dtype=np.int64), np.zeros((0, 3), dtype=np.float32)).expected_calibration_error
    )
