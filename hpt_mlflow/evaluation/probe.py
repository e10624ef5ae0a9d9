"""A linear classifier on frozen features, its regularisation chosen on validation."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

# Inverse strengths of the L2 penalty, from features that say little to features that separate the classes well.
REGULARISATIONS = tuple(10.0**exponent for exponent in (-4, -3, -2, -1, 0))
ITERATIONS = 100


class Probe(NamedTuple):
    """A fitted probe.

    Attributes:
        classifier: features to class.
        regularisation: the C that was best on validation, inverse strength of the penalty.
        validation_accuracy: top-1 on validation, in [0, 1].
    """

    classifier: Pipeline
    regularisation: float
    validation_accuracy: float


def fit_probe(
    train_features: np.ndarray, train_labels: np.ndarray, validation_features: np.ndarray, validation_labels: np.ndarray
) -> Probe:
    """Multinomial logistic regression on standardised features of train, for each of `REGULARISATIONS`; the best stays.

    Args:
        train_features, validation_features: float32 (N, F) and (M, F).
        train_labels, validation_labels: int64 (N,) and (M,).
    """
    best: Probe | None = None
    for regularisation in REGULARISATIONS:
        classifier = make_pipeline(StandardScaler(), LogisticRegression(C=regularisation, max_iter=ITERATIONS))
        with warnings.catch_warnings():
            # Stopping early is a regularisation as well, and validation judges it.
            warnings.simplefilter("ignore", ConvergenceWarning)
            classifier.fit(train_features, train_labels)
        accuracy = float(classifier.score(validation_features, validation_labels))
        if best is None or accuracy > best.validation_accuracy:
            best = Probe(classifier, regularisation, accuracy)
    assert best is not None
    return best
