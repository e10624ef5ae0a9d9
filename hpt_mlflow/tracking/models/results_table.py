"""The figures of all evaluations in the tracking store, side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping

from hpt_mlflow.tracking.connection import tracking_errors
from hpt_mlflow.tracking.models.evaluations import Evaluation, finished_evaluations

# Which metrics stand in a column: the first that an evaluation has. Classes have an accuracy, labels an AUROC.
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "balanced": ("test/balanced_accuracy",),
    "20-NN": ("knn/test_accuracy",),
    "untrained": ("random/accuracy", "random/auroc"),
    "untrained 20-NN": ("random/knn_accuracy",),
}
HEADER = ("model", "chain", "evaluated on", "protocol", "figure", "value", "95% interval", *COLUMNS)


def result_rows() -> list[tuple[str, ...]]:
    """A row of `HEADER` for each finished evaluation of all experiments, oldest first; - for what it has not."""
    with tracking_errors("cannot list the evaluations"):
        return [_row(one) for one in reversed(finished_evaluations())]


def _row(one: Evaluation) -> tuple[str, ...]:
    primary = one.primary
    interval = "-" if math.isnan(primary.low) else f"{primary.low:.3f} to {primary.high:.3f}"
    figures = (
        next((one.metrics[name] for name in metrics if name in one.metrics), math.nan) for metrics in COLUMNS.values()
    )
    return (
        one.model,
        one.chain,
        one.dataset,
        one.protocol or "-",
        one.metric.removeprefix("test/"),
        _number(primary.value),
        interval,
        *map(_number, figures),
    )


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"
