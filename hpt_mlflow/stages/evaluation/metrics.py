"""The metrics of an evaluation, under the names by which runs are compared."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np

from hpt_mlflow.evaluation.calibration import reliability
from hpt_mlflow.evaluation.certainty import paired, test_intervals
from hpt_mlflow.evaluation.neighbours import nearest_neighbour_classes
from hpt_mlflow.evaluation.protocols import PROTOCOLS
from hpt_mlflow.evaluation.protocols.base import Outcome
from hpt_mlflow.evaluation.scores import balanced_accuracy, is_multilabel, primary_name
from hpt_mlflow.interval import Interval

# MLflow's limit on the whole name of a metric is 250.
LONGEST_NAME = 200


def outcome_metrics(protocol: str, outcome: Outcome) -> dict[str, float]:
    """Scores of a classifier on validation, and on test with the ends of each 95% interval."""
    labels = outcome.task.part_labels
    name = primary_name(labels.test)
    prefix = PROTOCOLS[protocol].metric_prefix
    metrics = {f"{prefix}/val_{name}": outcome.validation_score}
    metrics[f"{prefix}/step"] = outcome.step
    metrics |= {f"{prefix}/{key}": value for key, value in outcome.hyperparameters.items()}
    metrics[f"{prefix}/converged"] = float(not outcome.warning)
    names = metric_names(outcome.task.classes)
    for key, interval in test_intervals(labels.test, outcome.probabilities, outcome.task.classes).items():
        score, slash, label = key.partition("/")
        metrics |= with_ends(f"test/{score}{slash}{names[label] if slash else ''}", interval)
    metrics["test/calibration_error"] = reliability(labels.test, outcome.probabilities).expected_calibration_error
    return metrics | _neighbour_metrics(outcome)


def repeat_metrics(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Mean and standard deviation on test over repetitions with other seeds; nothing for a single one."""
    if len(outcomes) < 2:
        return {}
    name = primary_name(outcomes[0].task.part_labels.test)
    scores = [outcome.test_score for outcome in outcomes]
    return {
        f"repeats/{name}_mean": statistics.fmean(scores),
        f"repeats/{name}_std": statistics.stdev(scores),
        "repeats/count": float(len(scores)),
    }


def baseline_metrics(learned: Outcome, untrained: Outcome | None) -> dict[str, float]:
    """Scores without any pretraining, and the gain of the model over them with its 95% interval."""
    labels = learned.task.part_labels
    name = primary_name(labels.test)
    if is_multilabel(labels.test):
        metrics = {f"chance/{name}": 0.5}
    else:
        largest_class = np.bincount(labels.train).argmax()
        metrics = {f"chance/{name}": float((labels.test == largest_class).mean())}
    if untrained is None:
        return metrics
    metrics[f"random/{name}"] = untrained.test_score
    gain = paired(labels.test, untrained.probabilities, learned.probabilities).primary.difference
    metrics |= with_ends(f"gain/{name}", gain)
    if not is_multilabel(labels.test):
        metrics["random/balanced_accuracy"] = balanced_accuracy(labels.test, untrained.probabilities)
        metrics["random/knn_accuracy"] = _neighbour_metrics(untrained)["knn/test_accuracy"]
    return metrics


def metric_names(labels: Sequence[str]) -> dict[str, str]:
    """How each label is spelled in the name of a metric: in characters that MLflow accepts, and all different."""
    names: dict[str, str] = {}
    for label in labels:
        name = "".join(character if character.isalnum() or character in "_- " else "_" for character in label)
        name = name[:LONGEST_NAME]
        while name in names.values():
            name += "_"
        names[label] = name
    return names


def with_ends(name: str, interval: Interval) -> dict[str, float]:
    """The three metrics of a score with its interval."""
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _neighbour_metrics(outcome: Outcome) -> dict[str, float]:
    """20-NN by train, on validation, and on test with its interval; nothing for multi-label truth."""
    labels, features, classes = outcome.task.part_labels, outcome.features, outcome.task.classes
    if is_multilabel(labels.test):
        return {}
    validation, test = (
        nearest_neighbour_classes(features.train, labels.train, part) for part in (features.validation, features.test)
    )
    interval = test_intervals(labels.test, np.eye(len(classes))[test], classes)["accuracy"]
    on_validation = float((validation == labels.validation).mean())
    return {"knn/val_accuracy": on_validation} | with_ends("knn/test_accuracy", interval)
