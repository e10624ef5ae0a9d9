"""The figures of all evaluations in the tracking store, side by side."""

from __future__ import annotations

from typing import NamedTuple

import mlflow
from mlflow.entities import Run

COLUMNS = {
    "linear": "test/accuracy",
    "balanced": "test/balanced_accuracy",
    "20-NN": "knn/test_accuracy",
    "untrained linear": "random/accuracy",
    "untrained 20-NN": "random/knn_accuracy",
}


class Evaluation(NamedTuple):
    """One finished evaluation.

    Attributes:
        model: address of the model.
        chain: the datasets behind it.
        figures: by the name of the column.
    """

    model: str
    chain: str
    dataset: str
    figures: dict[str, float]


def evaluations() -> list[Evaluation]:
    """The finished evaluations of all experiments, oldest first."""
    experiments = [experiment.experiment_id for experiment in mlflow.search_experiments()]
    runs = mlflow.search_runs(
        experiments,
        "tags.`hpt.stage` = 'evaluate' and status = 'FINISHED'",
        order_by=["attributes.start_time ASC"],
        output_format="list",
    )
    return [
        Evaluation(
            model=run.data.tags["hpt.parent_model"],
            chain=run.data.tags["hpt.chain"],
            dataset=_dataset_name(run),
            figures={name: run.data.metrics.get(metric, float("nan")) for name, metric in COLUMNS.items()},
        )
        for run in runs
    ]


def _dataset_name(run: Run) -> str:
    inputs = run.inputs.dataset_inputs if run.inputs else []
    return inputs[0].dataset.name if inputs else ""
