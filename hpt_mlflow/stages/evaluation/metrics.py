"""The figures of an evaluation, by the names that runs line up by."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np

from hpt_mlflow.evaluation.calibration import expected_calibration_error
from hpt_mlflow.evaluation.certainty import paired, test_intervals
from hpt_mlflow.evaluation.neighbours import nearest_neighbour_classes
from hpt_mlflow.evaluation.scores import balanced_accuracy, is_multilabel, primary_name
from hpt_mlflow.evaluation.task import Outcome

# MLflow's limit on the whole name of a metric is 250.
LONGEST_NAME = 200


def certain_figures(protocol: str, outcome: Outcome) -> dict[str, float]:
    """What a classifier reaches: on validation, and on test with the ends of each 95% interval."""
    labels = outcome.task.part_labels
    name = primary_name(labels.test)
    trained = "finetune" if protocol == "finetune" else "probe"
    figures = {f"{trained}/val_{name}": outcome.validation_score}
    figures[f"{trained}/step"] = outcome.step
    figures |= {f"{trained}/{key}": value for key, value in outcome.chosen.items()}
    figures[f"{trained}/converged"] = float(not outcome.reason)
    names = metric_names(outcome.task.classes)
    for key, interval in test_intervals(labels.test, outcome.probabilities, outcome.task.classes).items():
        figure, slash, label = key.partition("/")
        metric = f"test/{figure}{slash}{names[label] if slash else ''}"
        figures |= {metric: interval.value, f"{metric}_low": interval.low, f"{metric}_high": interval.high}
    figures["test/calibration_error"] = expected_calibration_error(labels.test, outcome.probabilities)
    return figures | _neighbour_figures(outcome)


def repeat_figures(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Mean and standard deviation on test over repetitions with other seeds; nothing of one alone."""
    if len(outcomes) < 2:
        return {}
    name = primary_name(outcomes[0].task.part_labels.test)
    scores = [outcome.test_score for outcome in outcomes]
    return {
        f"repeats/{name}_mean": statistics.fmean(scores),
        f"repeats/{name}_std": statistics.stdev(scores),
        "repeats/count": float(len(scores)),
    }


def compared_with_untrained(learned: Outcome, untrained: Outcome | None) -> dict[str, float]:
    """What one gets without any pretraining, and how much the model is better, with its 95% interval."""
    labels = learned.task.part_labels
    name = primary_name(labels.test)
    if is_multilabel(labels.test):
        figures = {f"chance/{name}": 0.5}
    else:
        largest_class = np.bincount(labels.train).argmax()
        figures = {f"chance/{name}": float((labels.test == largest_class).mean())}
    if untrained is None:
        return figures
    figures[f"random/{name}"] = untrained.test_score
    gain = paired(labels.test, untrained.probabilities, learned.probabilities).primary.difference
    figures |= {f"gain/{name}": gain.value, f"gain/{name}_low": gain.low, f"gain/{name}_high": gain.high}
    if not is_multilabel(labels.test):
        figures["random/balanced_accuracy"] = balanced_accuracy(labels.test, untrained.probabilities)
        figures["random/knn_accuracy"] = _neighbour_figures(untrained)["knn/test_accuracy"]
    return figures


def first_step_to(score: float | None, steps: Sequence[int], scores: Sequence[float]) -> int | None:
    """The first of `steps`, in ascending order, whose score is at least `score`; None where there is none."""
    if score is None:
        return None
    return next((step for step, reached in zip(steps, scores, strict=True) if reached >= score), None)


def metric_names(labels: Sequence[str]) -> dict[str, str]:
    """What each label is called in the name of a metric: in characters that MLflow takes, and no two alike."""
    names: dict[str, str] = {}
    for label in labels:
        name = "".join(character if character.isalnum() or character in "_- " else "_" for character in label)
        name = name[:LONGEST_NAME]
        while name in names.values():
            name += "_"
        names[label] = name
    return names


def _neighbour_figures(outcome: Outcome) -> dict[str, float]:
    """20-NN by train, on validation, and on test with its interval; nothing where labels stand each on its own."""
    labels, features, classes = outcome.task.part_labels, outcome.features, outcome.task.classes
    if is_multilabel(labels.test):
        return {}
    validation, test = (
        nearest_neighbour_classes(features.train, labels.train, asked) for asked in (features.validation, features.test)
    )
    certain = test_intervals(labels.test, np.eye(len(classes))[test], classes)["accuracy"]
    return {
        "knn/val_accuracy": float((validation == labels.validation).mean()),
        "knn/test_accuracy": certain.value,
        "knn/test_accuracy_low": certain.low,
        "knn/test_accuracy_high": certain.high,
    }
