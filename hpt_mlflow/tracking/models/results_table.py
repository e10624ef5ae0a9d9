"""The metrics of all evaluations in the tracking store, side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping
from urllib.parse import quote

from hpt_mlflow.tracking import tags as tag
from hpt_mlflow.tracking.connection import tracking_errors
from hpt_mlflow.tracking.models.evaluations import Evaluation, finished_evaluations

# A column shows the first of these metrics that an evaluation has: accuracy, or AUROC for multi-label data.
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "balanced": ("test/balanced_accuracy",),
    "20-NN": ("knn/test_accuracy",),
    "untrained": ("random/accuracy", "random/auroc"),
    "untrained 20-NN": ("random/knn_accuracy",),
}
HEADER = ("model", "chain", "evaluated on", "protocol", "figure", "value", "95% interval", *COLUMNS)


def result_rows() -> list[tuple[str, ...]]:
    """A row of `HEADER` per finished evaluation of all experiments, oldest first; - if a value is missing."""
    with tracking_errors("cannot list the evaluations"):
        return [_row(evaluation) for evaluation in reversed(finished_evaluations())]


def comparison_path() -> str:
    """The page of MLflow's UI with charts of all evaluations on the newest one's test images."""
    with tracking_errors("cannot list the evaluations"):
        newest = next(iter(finished_evaluations()), None)
    if newest is None:
        return "#/experiments"
    same = quote(f"tags.`{tag.STAGE}` = 'evaluate' and tags.`{tag.TEST_DIGEST}` = '{newest.test_digest}'")
    return f"#/experiments/{newest.experiment_id}/runs?searchFilter={same}&compareRunsMode=CHART"


def _row(evaluation: Evaluation) -> tuple[str, ...]:
    primary = evaluation.primary
    values = (
        next((evaluation.metrics[name] for name in metrics if name in evaluation.metrics), math.nan)
        for metrics in COLUMNS.values()
    )
    return (
        evaluation.model,
        evaluation.chain,
        evaluation.dataset,
        evaluation.protocol or "-",
        evaluation.metric.removeprefix("test/"),
        _number(primary.value),
        primary.ends or "-",
        *map(_number, values),
    )


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"
