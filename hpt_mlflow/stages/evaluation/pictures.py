"""The figures and tables of an evaluation, logged with its run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import safetensors.numpy

from hpt_mlflow.errors import printable
from hpt_mlflow.evaluation.protocols.base import Outcome
from hpt_mlflow.evaluation.scores import is_multilabel, primary_name
from hpt_mlflow.report.embedding_map import embedding_map
from hpt_mlflow.report.evaluation_figures import (
    confusion_matrix,
    milestone_curve,
    reliability_diagram,
    roc_curves,
)
from hpt_mlflow.report.image_grids import confused_pairs, sample_neighbours
from hpt_mlflow.tracking.runs.stage_run import StageRun
from hpt_mlflow.tracking.tags import PREDICTIONS_FILE


def log_pictures(run: StageRun, outcome: Outcome, step: int) -> None:
    """Log figures that show where a classifier is right, and where it is wrong.

    Args:
        step: of the model.
    """
    task, truth = outcome.task, outcome.task.part_labels.test
    if is_multilabel(truth):
        run.picture(roc_curves(truth, outcome.probabilities, task.classes), "roc_curves.png")
    else:
        prediction = outcome.probabilities.argmax(axis=1)
        run.picture(confusion_matrix(truth, prediction, task.classes), "confusion_matrix.png")
        confidence = outcome.probabilities.max(axis=1)
        confused = confused_pairs(task.reader.images, task.split.test, truth, prediction, confidence, task.classes)
        if confused is not None:
            run.picture(confused, "most_confused.png")
    run.picture(reliability_diagram(truth, outcome.probabilities), "reliability.png")
    features = embedding_map(outcome.features.test, truth, task.classes)
    if features is not None:
        run.image(features, "embedding map", step)
    neighbours = sample_neighbours(
        task.reader.images,
        task.split.test,
        outcome.features.test,
        task.split.train,
        outcome.features.train,
        task.labels,
        task.classes,
    )
    run.image(neighbours, "nearest neighbours", step)


def log_predictions(run: StageRun, outcome: Outcome, names: Sequence[str]) -> None:
    """Log the predictions on test: exactly, for comparisons, and as a table for people.

    Args:
        names: of the test images.
    """
    task = outcome.task
    truth, probabilities = task.part_labels.test, outcome.probabilities

    def fill(folder: Path) -> None:
        exact = {"index": task.split.test, "truth": truth, "probabilities": probabilities}
        arrays = {name: np.ascontiguousarray(values) for name, values in exact.items()}
        safetensors.numpy.save_file(arrays, folder / PREDICTIONS_FILE)

    run.files([PREDICTIONS_FILE], fill)
    if not is_multilabel(truth):
        best = probabilities.argmax(axis=1)
        rows = {
            "image": [printable(name) for name in names],
            "true": [task.classes[i] for i in truth],
            "predicted": [task.classes[i] for i in best],
            "probability": [round(float(row[i]), 4) for row, i in zip(probabilities, best, strict=True)],
        }
        run.table(rows, "predictions.json")
    if outcome.trials:
        run.table(outcome.trials, "trials.json")


def log_curve(run: StageRun, outcome: Outcome) -> None:
    """Log scores on validation and test as metrics at the steps of the learning curve."""
    name = primary_name(outcome.task.part_labels.test)
    for step, validation, test in outcome.curve:
        values = {f"probe_curve/val_{name}": validation, f"probe_curve/test_{name}": test}
        run.metrics({key: value for key, value in values.items() if not math.isnan(value)}, step)


def log_milestones(run: StageRun, by_step: dict[int, dict[str, float]], name: str, untrained: Outcome | None) -> None:
    """Draw the score of each milestone against pretraining steps.

    Args:
        by_step: metrics of each milestone, by its step.
        name: of the primary score.
    """
    steps = sorted(by_step)
    scores, lows, highs = ([by_step[step][f"test/{name}{end}"] for step in steps] for end in ("", "_low", "_high"))
    baseline = untrained.test_score if untrained else None
    run.picture(milestone_curve(steps, scores, lows, highs, name, baseline), "milestones.png")
