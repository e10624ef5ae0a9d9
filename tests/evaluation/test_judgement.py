from __future__ import annotations

import numpy as np
import pytest

from hpt_mlflow.evaluation.judgement import Judgement, Parts, judge
from hpt_mlflow.evaluation.neighbours import nearest_neighbour_classes


def make_parts(noise: float) -> tuple[Parts, Parts]:
    """Three classes, of which the first is by far the largest."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(3, 8))
    labels = Parts(*(np.repeat([0, 1, 2], counts) for counts in ([60, 15, 15], [30, 10, 10], [40, 12, 8])))
    features = Parts(*((centres[part] + noise * rng.normal(size=(len(part), 8))).astype(np.float32) for part in labels))
    return features, labels


@pytest.fixture(scope="module")
def noisy() -> tuple[Parts, Parts, Judgement]:
    features, labels = make_parts(noise=1.5)
    return features, labels, judge(features, labels)


def test_classes_that_lie_apart_are_all_found():
    judgement = judge(*make_parts(noise=0.01))
    assert judgement.accuracy == 1
    assert judgement.balanced_accuracy == 1
    assert judgement.neighbour_accuracy == 1
    assert judgement.neighbour_validation_accuracy == 1
    assert judgement.probe.validation_accuracy == 1


def test_prediction_is_the_probes_on_test(noisy):
    features, labels, judgement = noisy
    assert np.array_equal(judgement.prediction, judgement.probe.predict(features.test))
    assert judgement.accuracy == pytest.approx((judgement.prediction == labels.test).mean())
    assert 0.4 < judgement.accuracy < 1


def test_balanced_accuracy_is_the_mean_of_the_shares_found(noisy):
    _, labels, judgement = noisy
    found = [(judgement.prediction[labels.test == label] == label).mean() for label in range(3)]
    assert judgement.balanced_accuracy == pytest.approx(np.mean(found))
    assert judgement.balanced_accuracy != pytest.approx(judgement.accuracy)


def test_neighbours_are_those_of_train(noisy):
    features, labels, judgement = noisy
    for part, accuracy in (
        ("validation", judgement.neighbour_validation_accuracy),
        ("test", judgement.neighbour_accuracy),
    ):
        answers = nearest_neighbour_classes(features.train, labels.train, getattr(features, part))
        assert accuracy == pytest.approx((answers == getattr(labels, part)).mean())


def test_labels_of_test_change_no_choice(noisy):
    features, labels, judgement = noisy
    other = judge(features, labels._replace(test=np.roll(labels.test, 30)))
    assert other.probe.regularisation == judgement.probe.regularisation
    assert np.array_equal(other.prediction, judgement.prediction)
    assert other.accuracy != judgement.accuracy
