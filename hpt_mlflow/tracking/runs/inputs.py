"""The inputs of a run as MLflow shows them: its dataset, and the model that it started from."""

from __future__ import annotations

import json
import logging
from contextlib import suppress

from mlflow.entities import Dataset as MlflowDataset
from mlflow.entities import DatasetInput, InputTag, LoggedModelInput, Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from hpt_mlflow.data.dataset import Dataset
from hpt_mlflow.data.split import Split
from hpt_mlflow.data.statistics import ChannelStatistics
from hpt_mlflow.errors import valid_unicode
from hpt_mlflow.tracking import tags as tag
from hpt_mlflow.tracking.addresses import model_id_of
from hpt_mlflow.tracking.reasons import reason

SOURCE_TYPE = "hpt_mlflow"

log = logging.getLogger("hpt_mlflow")


def log_inputs(
    run_id: str, dataset: Dataset, split: Split, statistics: ChannelStatistics, context: str, parent: str | None
) -> None:
    """Log a dataset, with its sizes and channel statistics, and a model as inputs of a run; waits for the server.

    MLflow keeps one record per name and digest, whichever run logged it first. So the record says nothing of a stage.

    Args:
        context: what the dataset is for: `training`, `evaluation` or `inference`.
        parent: address of the model; None, or what is no address, for none.
    """
    profile = {
        "images": len(dataset),
        "train": len(split.train),
        "validation": len(split.validation),
        "test": len(split.test),
        "classes": len(dataset.classes),
        "channel_mean": list(statistics.mean),
        "channel_std": list(statistics.std),
    }
    described = MlflowDataset(
        name=dataset.name,
        digest=dataset.digest,
        source_type=SOURCE_TYPE,
        source=json.dumps({"uri": valid_unicode(dataset.uri)}),
        schema=json.dumps({"image": "uint8 RGB"}),
        profile=json.dumps(profile),
    )
    models = [LoggedModelInput(model_id)] if parent and (model_id := _known_model(parent)) else []
    datasets = [DatasetInput(described, [InputTag(tag.DATA_CONTEXT, context)])]
    try:
        MlflowClient().log_inputs(run_id, datasets, models)
    except MlflowException as error:
        # Whoever may read a model of another team may not always name it as an input: that changes the model's page.
        if not models or error.error_code != "PERMISSION_DENIED":
            raise
        MlflowClient().log_inputs(run_id, datasets)
        log.warning("MLflow does not show %s as an input of the run: %s", parent, reason(error))


def _known_model(address: str) -> str | None:
    """The LoggedModel behind an address; None if it is deleted, or on another server than the run."""
    with suppress(MlflowException):
        model_id = model_id_of(address)
        return MlflowClient().get_logged_model(model_id).model_id if model_id else None
    return None


def logged_dataset(run: Run) -> tuple[str, dict[str, int]]:
    """Name and sizes of the dataset of a run; empty if it has logged none."""
    inputs = run.inputs.dataset_inputs if run.inputs else []
    if not inputs:
        return "", {}
    try:
        profile = json.loads(inputs[0].dataset.profile or "{}")
    except ValueError:
        profile = {}
    return inputs[0].dataset.name, profile if isinstance(profile, dict) else {}
