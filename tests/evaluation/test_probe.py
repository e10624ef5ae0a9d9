from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from hpt_mlflow.evaluation.probe import REGULARISATIONS, fit_probe


def clusters(n: int, noise: float, seed: int, classes: int = 4, dimensions: int = 12) -> tuple[np.ndarray, np.ndarray]:
    centres = np.random.default_rng(0).normal(size=(classes, dimensions))
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    features = centres[labels] + noise * rng.normal(size=(n, dimensions))
    # Features of very different scales, as networks have them.
    return (features * np.logspace(-2, 2, dimensions) + 3).astype(np.float32), labels.astype(np.int64)


def by_sklearn(regularisation: float, features: np.ndarray, labels: np.ndarray):
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=regularisation, max_iter=2000, tol=1e-8))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return classifier.fit(features.astype(np.float64), labels)


@pytest.mark.parametrize(("train_count", "noise"), [(40, 0.5), (40, 3.0), (200, 1.5), (24, 6.0)])
def test_regularisation_is_the_best_on_validation(train_count, noise):
    train, validation = clusters(train_count, noise, 1), clusters(200, noise, 2)
    probe = fit_probe(*train, *validation)
    accuracies = {c: by_sklearn(c, *train).score(*validation) for c in REGULARISATIONS}
    # One or two images at the boundary may fall to the other side by rounding.
    assert probe.validation_accuracy == pytest.approx(max(accuracies.values()), abs=0.01)
    assert accuracies[probe.regularisation] >= max(accuracies.values()) - 0.01


def test_no_single_regularisation_is_always_the_best():
    chosen = {
        fit_probe(*clusters(count, noise, 1), *clusters(200, noise, 2)).regularisation
        for count, noise in [(40, 0.5), (40, 3.0), (200, 1.5), (24, 6.0)]
    }
    assert len(chosen) > 1
    assert chosen <= set(REGULARISATIONS)


def test_classifier_is_logistic_regression_on_standardised_features():
    train, validation = clusters(60, 2.0, 1), clusters(200, 2.0, 2)
    probe = fit_probe(*train, *validation)
    reference = by_sklearn(probe.regularisation, *train)
    unseen, _ = clusters(500, 2.0, 3)
    assert (probe.predict(unseen) == reference.predict(unseen)).mean() >= 0.99


def test_validation_accuracy_is_that_of_its_own_predictions():
    train, validation = clusters(40, 3.0, 1), clusters(100, 3.0, 2)
    probe = fit_probe(*train, *validation)
    assert probe.validation_accuracy == pytest.approx((probe.predict(validation[0]) == validation[1]).mean())


def test_among_equals_the_strongest_penalty_is_kept():
    train, validation = clusters(80, 0.01, 1), clusters(40, 0.01, 2)
    probe = fit_probe(*train, *validation)
    assert probe.validation_accuracy == 1
    assert probe.regularisation == REGULARISATIONS[0]


def test_same_features_give_the_same_probe():
    train, validation = clusters(40, 3.0, 1), clusters(100, 3.0, 2)
    unseen, _ = clusters(100, 3.0, 3)
    first, second = (fit_probe(*train, *validation) for _ in range(2))
    assert first.regularisation == second.regularisation
    assert np.array_equal(first.predict(unseen), second.predict(unseen))


def test_feature_without_variation_does_no_harm():
    train, validation = clusters(60, 2.0, 1), clusters(100, 2.0, 2)
    plain = fit_probe(*train, *validation)
    with_dead = [(np.pad(features, ((0, 0), (0, 1))), labels) for features, labels in (train, validation)]
    padded = fit_probe(*with_dead[0], *with_dead[1])
    assert padded.validation_accuracy == pytest.approx(plain.validation_accuracy, abs=0.02)


def test_class_that_train_lacks_is_never_wrong_elsewhere():
    (features, labels), validation = clusters(60, 0.5, 1), clusters(40, 0.5, 2)
    known = labels != 2
    probe = fit_probe(features[known], labels[known], *validation)
    prediction = probe.predict(validation[0])
    assert 2 not in prediction
    assert (prediction == validation[1])[validation[1] != 2].mean() > 0.9


def test_two_classes():
    train, validation = clusters(40, 1.0, 1, classes=2), clusters(100, 1.0, 2, classes=2)
    probe = fit_probe(*train, *validation)
    best = max(by_sklearn(c, *train).score(*validation) for c in REGULARISATIONS)
    assert probe.validation_accuracy == pytest.approx(best, abs=0.03)
