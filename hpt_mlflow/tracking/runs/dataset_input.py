"""A dataset as MLflow shows it beside a run."""

from __future__ import annotations

import json
from typing import Any

from mlflow.data.dataset import Dataset as MlflowDataset
from mlflow.data.dataset_source import DatasetSource
from mlflow.entities import DatasetInput, InputTag
from mlflow.tracking import MlflowClient

from hpt_mlflow.data.dataset import Dataset
from hpt_mlflow.data.split import Split
from hpt_mlflow.data.statistics import ChannelStatistics
from hpt_mlflow.errors import valid_unicode
from hpt_mlflow.tracking import tags as tag


class UriSource(DatasetSource):
    """Where a dataset came from: the address that opens it again with `hpt_mlflow`."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    @staticmethod
    def _get_source_type() -> str:
        return "hpt_mlflow"

    def load(self) -> Dataset:
        """Open the dataset."""
        from hpt_mlflow.data.sources import open_dataset

        return open_dataset(self.uri)

    @staticmethod
    def _can_resolve(raw_source: Any) -> bool:
        return False

    @classmethod
    def _resolve(cls, raw_source: Any) -> UriSource:
        return cls(raw_source)

    def to_dict(self) -> dict[str, str]:
        """As JSON."""
        return {"uri": valid_unicode(self.uri)}

    @classmethod
    def from_dict(cls, source_dict: dict[str, str]) -> UriSource:
        """From JSON."""
        return cls(source_dict["uri"])


class ImageDataset(MlflowDataset):
    """Name, digest, sizes and channel statistics of a dataset of images."""

    def __init__(self, dataset: Dataset, split: Split, statistics: ChannelStatistics) -> None:
        super().__init__(source=UriSource(dataset.uri), name=dataset.name, digest=dataset.digest)
        self._profile = {
            "images": len(dataset),
            "train": len(split.train),
            "validation": len(split.validation),
            "test": len(split.test),
            "classes": len(dataset.classes),
            "channel_mean": list(statistics.mean),
            "channel_std": list(statistics.std),
        }

    def _compute_digest(self) -> str:
        return str(self._digest)

    @property
    def profile(self) -> dict[str, Any]:
        """What the UI shows of it."""
        return self._profile

    @property
    def schema(self) -> None:
        """Images have no columns."""
        return None

    def to_dict(self) -> dict[str, str]:
        """As MLflow stores it."""
        return {**super().to_dict(), "profile": json.dumps(self._profile), "schema": json.dumps({"image": "uint8 RGB"})}


def log_dataset(run_id: str, dataset: Dataset, split: Split, statistics: ChannelStatistics, context: str) -> None:
    """Log a dataset as an input of a run; waits for the server.

    MLflow keeps one record for a name and digest, whichever run logged it first. So it says nothing of a stage.

    Args:
        context: what it is for: `training` or `evaluation`.
    """
    described = ImageDataset(dataset, split, statistics)._to_mlflow_entity()
    tags = [InputTag(tag.DATA_CONTEXT, context)]
    MlflowClient().log_inputs(run_id, [DatasetInput(described, tags)])
