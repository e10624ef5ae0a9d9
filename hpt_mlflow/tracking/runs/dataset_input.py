"""The dataset of a run, as MLflow shows it among the run's inputs."""

from __future__ import annotations

import json

from mlflow.entities import Dataset as MlflowDataset
from mlflow.entities import DatasetInput, InputTag, Run
from mlflow.tracking import MlflowClient

from hpt_mlflow.data.dataset import Dataset
from hpt_mlflow.data.split import Split
from hpt_mlflow.data.statistics import ChannelStatistics
from hpt_mlflow.errors import valid_unicode
from hpt_mlflow.tracking import tags as tag

SOURCE_TYPE = "hpt_mlflow"


def log_dataset(run_id: str, dataset: Dataset, split: Split, statistics: ChannelStatistics, context: str) -> None:
    """Log name, digest, sizes and channel statistics of a dataset as an input of a run; waits for the server.

    MLflow keeps one record per name and digest, whichever run logged it first. So the record says nothing of a stage.

    Args:
        context: what it is for: `training` or `evaluation`.
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
    MlflowClient().log_inputs(run_id, [DatasetInput(described, [InputTag(tag.DATA_CONTEXT, context)])])


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
