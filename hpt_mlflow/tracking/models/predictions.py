"""Predictions for the test images, as evaluations keep them, and the comparison of two of them."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass

import numpy as np
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from safetensors import SafetensorError
from safetensors.numpy import load_file

from hpt_mlflow.errors import HptError
from hpt_mlflow.evaluation.certainty import Comparison, paired
from hpt_mlflow.tracking.models.evaluations import Evaluation
from hpt_mlflow.tracking.reasons import reason
from hpt_mlflow.tracking.tags import PREDICTIONS_FILE


@dataclass(frozen=True)
class Predictions:
    """Predictions of a model for the test images.

    Attributes:
        index: int64 (N,), indices into the dataset, ascending.
        truth: int64 (N,) classes, or uint8 (N, C) labels.
        probabilities: float64 (N, C).
    """

    index: np.ndarray
    truth: np.ndarray
    probabilities: np.ndarray


def read_predictions(evaluation: Evaluation) -> Predictions:
    """The predictions of an evaluation.

    Raises:
        HptError: the file is missing or damaged.
    """
    subject = f"the predictions of evaluation {evaluation.run_id} of {evaluation.model}"
    again = f"run again: {evaluation.command(evaluation.model)}"
    with tempfile.TemporaryDirectory() as temporary:
        try:
            file = MlflowClient().download_artifacts(evaluation.run_id, PREDICTIONS_FILE, temporary)
            return Predictions(**load_file(file))
        except (MlflowException, OSError, SafetensorError, TypeError) as error:
            raise HptError(f"{subject} are missing or damaged ({reason(error)})", again) from error


def compare_evaluations(a: Evaluation, b: Evaluation) -> Comparison:
    """Compare two models on the test images that both evaluations could read.

    Raises:
        HptError: predictions cannot be read, or are of different images or labels.
    """
    first, second = read_predictions(a), read_predictions(b)
    _, rows_a, rows_b = np.intersect1d(first.index, second.index, assume_unique=True, return_indices=True)
    if not len(rows_a):
        raise HptError(f"evaluations {a.run_id} and {b.run_id} share no test image", "evaluate both models again")
    truth_a, truth_b = first.truth[rows_a], second.truth[rows_b]
    same_labels = first.probabilities.shape[1] == second.probabilities.shape[1] and np.array_equal(truth_a, truth_b)
    if not same_labels:
        raise HptError(
            f"evaluations {a.run_id} and {b.run_id} disagree on the labels of the same test images",
            "evaluate both models again",
        )
    return paired(truth_a, first.probabilities[rows_a], second.probabilities[rows_b])
