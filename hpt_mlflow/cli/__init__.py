"""The `hpt` command."""

from __future__ import annotations

import click

from hpt_mlflow.cli.datasets import datasets
from hpt_mlflow.cli.models import compare, history, lineage, promote
from hpt_mlflow.cli.predict import predict
from hpt_mlflow.cli.runs import results, runs, sync, ui
from hpt_mlflow.cli.stages import stage_command
from hpt_mlflow.cli.weights import export, import_, make_whole
from hpt_mlflow.cores import fit_threads
from hpt_mlflow.stages import STAGES


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="hpt_mlflow")
def hpt() -> None:
    """Hierarchical PreTraining: self-supervised training on a large dataset, then on smaller ones nearer to yours.

    Each stage starts from the registered model of the previous one. MLflow keeps runs, models and pictures, on the
    server of MLFLOW_TRACKING_URI (default: mlflow.db in this folder).
    """
    fit_threads()


for _command in (
    *map(stage_command, STAGES.values()),
    results,
    compare,
    promote,
    history,
    lineage,
    predict,
    import_,
    export,
    make_whole,
    datasets,
    runs,
    sync,
    ui,
):
    hpt.add_command(_command)
