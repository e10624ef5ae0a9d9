from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from hpt_mlflow.evaluation import probe as probe_module
from hpt_mlflow.evaluation.probe import LOOKS, REGULARISATIONS, fit_probe

CASES = [(40, 0.5), (40, 3.0), (200, 1.5), (24, 6.0)]


def clusters(n, noise, seed, classes=4, dimensions=12):
    centres = np.random.default_rng(0).normal(size=(classes, dimensions))
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    features = centres[labels] + noise * rng.normal(size=(n, dimensions))
    # Features of very different scales, as networks have them.
    return (features * np.logspace(-2, 2, dimensions) + 3).astype(np.float32), labels.astype(np.int64)


def several_labels(n, seed, labels=3, dimensions=12):
    """Each label by a direction of its own, with noise; the last one is rare."""
    directions = np.random.default_rng(0).normal(size=(dimensions, labels))
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, dimensions))
    scores = features @ directions + 2 * rng.normal(size=(n, labels)) - np.linspace(0, 4, labels)
    return (features * np.logspace(-2, 2, dimensions) + 3).astype(np.float32), (scores > 0).astype(np.uint8)


def by_sklearn(regularisation, features, labels):
    """Logistic regression; of several labels, one for each on its own."""
    regression = LogisticRegression(C=regularisation, max_iter=2000, tol=1e-8)
    classifier = make_pipeline(StandardScaler(), OneVsRestClassifier(regression) if labels.ndim == 2 else regression)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return classifier.fit(features.astype(np.float64), labels)


@pytest.mark.parametrize(("train_count", "noise"), CASES)
def test_regularisation_is_the_best_on_validation(train_count, noise):
    train, validation = clusters(train_count, noise, 1), clusters(200, noise, 2)
    probe = fit_probe(*train, *validation, 4)
    accuracies = {c: by_sklearn(c, *train).score(*validation) for c in REGULARISATIONS}
    # One or two images at the boundary may fall to the other side by rounding.
    assert probe.validation_score == pytest.approx(max(accuracies.values()), abs=0.01)
    assert accuracies[probe.regularisation] >= max(accuracies.values()) - 0.01


def test_no_single_regularisation_is_always_the_best():
    chosen = {
        fit_probe(*clusters(count, noise, 1), *clusters(200, noise, 2), 4).regularisation for count, noise in CASES
    }
    assert len(chosen) > 1
    assert chosen <= set(REGULARISATIONS)


@pytest.mark.parametrize(("train_count", "noise"), CASES)
def test_classifier_is_logistic_regression_on_standardised_features(train_count, noise):
    train, validation = clusters(train_count, noise, 1), clusters(200, noise, 2)
    probe = fit_probe(*train, *validation, 4)
    unseen, _ = clusters(500, noise, 3)
    expected = by_sklearn(probe.regularisation, *train).predict_proba(unseen)
    np.testing.assert_allclose(probe.head.probabilities(unseen), expected, atol=1e-3)


def test_labels_get_a_logistic_regression_each():
    train, validation = several_labels(150, 1), several_labels(200, 2)
    probe = fit_probe(*train, *validation, 3)
    assert probe.head.multilabel
    unseen, _ = several_labels(300, 3)
    expected = by_sklearn(probe.regularisation, *train).predict_proba(unseen)
    np.testing.assert_allclose(probe.head.probabilities(unseen), expected, atol=1e-3)


def test_regularisation_for_labels_is_best_by_the_mean_area_under_the_curve():
    train, validation = several_labels(60, 1), several_labels(200, 2)
    probe = fit_probe(*train, *validation, 3)
    areas = {
        c: roc_auc_score(validation[1], by_sklearn(c, *train).predict_proba(validation[0])) for c in REGULARISATIONS
    }
    assert probe.validation_score == pytest.approx(max(areas.values()), abs=0.005)
    assert areas[probe.regularisation] == pytest.approx(max(areas.values()), abs=0.005)
    # The weakest and the strongest penalty are not as good.
    assert min(areas.values()) < max(areas.values()) - 0.01


def test_validation_score_is_that_of_its_own_probabilities():
    train, validation = clusters(40, 3.0, 1), clusters(100, 3.0, 2)
    probe = fit_probe(*train, *validation, 4)
    right = probe.head.probabilities(validation[0]).argmax(axis=1) == validation[1]
    assert probe.validation_score == pytest.approx(right.mean())


def test_among_equals_the_one_with_the_best_probabilities_is_kept():
    train, validation = clusters(80, 0.01, 1), clusters(40, 0.01, 2)
    probe = fit_probe(*train, *validation, 4)
    assert probe.validation_score == 1
    assert probe.regularisation == REGULARISATIONS[-1]
    shares = probe.head.probabilities(validation[0])
    assert shares[np.arange(40), validation[1]].min() > 0.95


def test_same_features_give_the_same_probe():
    train, validation = clusters(40, 3.0, 1), clusters(100, 3.0, 2)
    first, second = (fit_probe(*train, *validation, 4) for _ in range(2))
    assert first.regularisation == second.regularisation
    assert all(torch.equal(one, other) for one, other in zip(first.head[:4], second.head[:4], strict=True))


def test_feature_without_variation_does_no_harm():
    train, validation = clusters(60, 2.0, 1), clusters(100, 2.0, 2)
    plain = fit_probe(*train, *validation, 4)
    with_dead = [(np.pad(features, ((0, 0), (0, 1))), labels) for features, labels in (train, validation)]
    padded = fit_probe(*with_dead[0], *with_dead[1], 4)
    assert padded.validation_score == pytest.approx(plain.validation_score, abs=0.02)


def test_class_that_train_lacks_is_never_wrong_elsewhere():
    (features, labels), validation = clusters(60, 0.5, 1), clusters(40, 0.5, 2)
    known = labels != 2
    probe = fit_probe(features[known], labels[known], *validation, 4)
    prediction = probe.head.probabilities(validation[0]).argmax(axis=1)
    assert 2 not in prediction
    assert (prediction == validation[1])[validation[1] != 2].mean() > 0.9


def test_label_that_all_images_of_train_have_does_no_harm():
    (features, labels), validation = several_labels(100, 1), several_labels(200, 2)
    plain = fit_probe(features, labels[:, :2], validation[0], validation[1][:, :2], 2)
    labels[:, 2] = 1
    probe = fit_probe(features, labels, *validation, 3)
    probabilities = probe.head.probabilities(validation[0])
    assert np.isfinite(probabilities).all()
    assert (probabilities[:, 2] > 0.5).all()
    areas = roc_auc_score(validation[1], probabilities, average=None)
    assert areas[:2].mean() == pytest.approx(plain.validation_score, abs=0.03)


def test_two_classes():
    train, validation = clusters(40, 1.0, 1, classes=2), clusters(100, 1.0, 2, classes=2)
    probe = fit_probe(*train, *validation, 2)
    best = max(by_sklearn(c, *train).score(*validation) for c in REGULARISATIONS)
    assert probe.validation_score == pytest.approx(best, abs=0.03)


def objective(head, features, labels, regularisation):
    """Sum of the cross-entropies and the penalty, in float64 by scikit-learn."""
    logits = head.logits(torch.from_numpy(features)).double()
    penalty = float(head.weight.double().square().sum()) / (2 * regularisation)
    return log_loss(labels, logits.softmax(dim=1), normalize=False) + penalty


def test_trace_is_the_fit_that_was_kept_and_ends_in_its_head():
    train, validation = clusters(200, 1.5, 1), clusters(200, 1.5, 2)
    probe = fit_probe(*train, *validation, 4)
    iterations = [iteration for iteration, _ in probe.trace]
    assert iterations == list(LOOKS[: len(iterations)])
    assert probe.trace[-1][1] is probe.head
    costs = [objective(head, *train, probe.regularisation) for _, head in probe.trace]
    assert all(after <= before * (1 + 1e-6) for before, after in itertools.pairwise(costs))
    assert costs[-1] < costs[0]


@pytest.mark.parametrize(
    ("looks", "converged"), [(LOOKS, True), ((1, 2, 5, 10, 15, 20), True), ((1, 2), False), ((1, 2, 5, 10), False)]
)
def test_converged_is_said_of_a_fit_that_came_to_its_end_and_of_no_other(looks, converged, monkeypatch):
    monkeypatch.setattr(probe_module, "LOOKS", looks)
    train, validation = clusters(300, 2.0, 1, dimensions=40), clusters(200, 2.0, 2, dimensions=40)
    probe = fit_probe(*train, *validation, 4, regularisations=(1.0,))
    pipeline = by_sklearn(1.0, *train)
    weight = pipeline[1].coef_
    best = log_loss(train[1], pipeline.predict_proba(train[0]), normalize=False) + (weight**2).sum() / 2
    excess = objective(probe.head, *train, 1.0) / best - 1
    assert excess > -1e-4
    assert (excess < 1e-3) == converged
    assert probe.converged == converged


def test_so_many_iterations_are_the_first_ones_of_a_longer_fit():
    train, validation = clusters(300, 2.0, 1, dimensions=40), clusters(200, 2.0, 2, dimensions=40)
    long, short = (fit_probe(*train, *validation, 4, None, (1.0,), iterations) for iterations in (100, 12))
    assert [iteration for iteration, _ in short.trace] == [1, 2, 5, 10]
    assert len(long.trace) > 4
    assert torch.equal(short.head.weight, dict(long.trace)[10].weight)
    assert not torch.equal(short.head.weight, long.head.weight)
    assert (long.converged, short.converged) == (True, False)


def test_the_probe_leaves_small_numbers_as_they_were():
    train, validation = clusters(24, 1.0, 1), clusters(24, 1.0, 2)
    fit_probe(*train, *validation, 4)
    assert float(torch.tensor(1e-40) * 1) > 0


def test_a_device_without_memory_leaves_the_probe_to_the_processor(monkeypatch, caplog):
    real, tried = probe_module._fit_probe, []

    def fit(*given):
        tried.append(given[5])
        if given[5] is not None:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*given)

    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(20, 4)).astype(np.float32), np.arange(20) % 2
    expected = fit_probe(features, labels, features, labels, 2, regularisations=[1.0])
    monkeypatch.setattr(probe_module, "_fit_probe", fit)
    found = fit_probe(features, labels, features, labels, 2, torch.device("cuda"), [1.0])
    assert tried == [torch.device("cuda"), None]
    assert torch.equal(found.head.weight, expected.head.weight)
    assert "cuda has no memory for a probe of 20 images" in caplog.text
