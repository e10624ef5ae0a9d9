"""What features are worth on a labelled dataset."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from hpt_mlflow.evaluation.neighbours import nearest_neighbour_classes
from hpt_mlflow.evaluation.probe import Probe, fit_probe


class Parts(NamedTuple):
    """Features, float32 (N, F), or labels, int64 (N,), of the three parts of a dataset."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


class Judgement(NamedTuple):
    """What features are worth; all shares in [0, 1].

    Attributes:
        probe: the linear probe, fitted on train and chosen on validation.
        prediction: its classes on test, int64 (N,).
        accuracy: top-1 of the probe on test.
        balanced_accuracy: mean over the classes of the share of each that the probe finds.
        neighbour_validation_accuracy, neighbour_accuracy: of 20-NN by train, on validation and on test.
    """

    probe: Probe
    prediction: np.ndarray
    accuracy: float
    balanced_accuracy: float
    neighbour_validation_accuracy: float
    neighbour_accuracy: float


def judge(features: Parts, labels: Parts) -> Judgement:
    """Fit a probe and ask the neighbours; test is used once, for the figures alone."""
    probe = fit_probe(features.train, labels.train, features.validation, labels.validation)
    prediction = probe.predict(features.test)
    neighbours = [
        nearest_neighbour_classes(features.train, labels.train, asked) for asked in (features.validation, features.test)
    ]
    return Judgement(
        probe=probe,
        prediction=prediction,
        accuracy=float(accuracy_score(labels.test, prediction)),
        balanced_accuracy=float(balanced_accuracy_score(labels.test, prediction)),
        neighbour_validation_accuracy=float(accuracy_score(labels.validation, neighbours[0])),
        neighbour_accuracy=float(accuracy_score(labels.test, neighbours[1])),
    )
