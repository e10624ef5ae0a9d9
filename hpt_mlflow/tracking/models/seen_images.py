"""Which images a training has seen: kept with its run, so that nobody tests on them by mistake."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors
import safetensors.numpy
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from hpt_mlflow.data.contents import UNKNOWN, VERSION
from hpt_mlflow.data.dataset import MOST, Dataset, evenly_spaced
from hpt_mlflow.errors import one_line
from hpt_mlflow.tracking.connection import reason
from hpt_mlflow.tracking.runs.stage_run import StageRun
from hpt_mlflow.tracking.tags import SEEN_IMAGES_FILE


class SeenImages(NamedTuple):
    """What a training kept of the images that it saw.

    Attributes:
        contents: int64 (N,), ascending, each once (see `data.contents`).
        share: of all its images, how many were looked at; less than 1 where there were too many.
    """

    contents: np.ndarray
    share: float


class NotKeptError(Exception):
    """Why it cannot be said which images a training has seen."""


def log_seen_images(run: StageRun, dataset: Dataset, seen: np.ndarray) -> None:
    """Keep the contents of the images that a training may see as an artifact of its run.

    Args:
        seen: int64 (n,), indices into the dataset; `MOST` of them are looked at, evenly spaced.
    """
    looked_at = evenly_spaced(seen, MOST)
    contents = np.unique(dataset.contents.of(looked_at))
    share = np.array([len(looked_at) / len(seen) if len(seen) else 1.0])
    kept = {"contents": contents[contents != UNKNOWN], "share": share}

    def fill(folder: Path) -> None:
        safetensors.numpy.save_file(kept, folder / SEEN_IMAGES_FILE, {"version": str(VERSION)})

    run.files([SEEN_IMAGES_FILE], fill)


def seen_images(run_id: str) -> SeenImages:
    """What a training kept.

    Raises:
        NotKeptError: that is nothing, cannot be read, or was kept by a version that took other images for the same.
    """
    with tempfile.TemporaryDirectory() as temporary:
        try:
            file = MlflowClient().download_artifacts(run_id, SEEN_IMAGES_FILE, temporary)
            with safetensors.safe_open(file, "numpy") as opened:
                if (opened.metadata() or {}).get("version") != str(VERSION):
                    raise NotKeptError(f"run {run_id} was made by another version of hpt_mlflow")
                contents, share = opened.get_tensor("contents"), float(opened.get_tensor("share").item())
        except MlflowException as error:
            raise NotKeptError(f"{SEEN_IMAGES_FILE} of run {run_id} is not there ({reason(error)})") from error
        except (OSError, KeyError, ValueError, safetensors.SafetensorError) as error:
            raise NotKeptError(f"{SEEN_IMAGES_FILE} of run {run_id} cannot be read ({one_line(error)})") from error
    if contents.dtype != np.int64 or contents.ndim != 1 or not 0 < share <= 1:
        raise NotKeptError(f"{SEEN_IMAGES_FILE} of run {run_id} is damaged")
    return SeenImages(contents, share)
