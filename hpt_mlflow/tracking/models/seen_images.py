"""Which images a training has seen: kept with its run, so that no evaluation tests on them by mistake."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors
import safetensors.numpy
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from hpt_mlflow.data.contents import UNKNOWN, VERSION
from hpt_mlflow.data.dataset import MOST, Dataset, evenly_spaced
from hpt_mlflow.data.perceptual import HASHED, hashes_of
from hpt_mlflow.data.perceptual import VERSION as PERCEPTUAL
from hpt_mlflow.errors import one_line
from hpt_mlflow.tracking.reasons import reason
from hpt_mlflow.tracking.runs.stage_run import StageRun
from hpt_mlflow.tracking.tags import SEEN_IMAGES_FILE

# In the metadata of the file: the version of the hashes.
HASHES = "hashes"


class SeenImages(NamedTuple):
    """The images that a training saw.

    Attributes:
        contents: int64 (N,), ascending, each once (see `data.contents`).
        share: of the training's images that were recorded; less than 1 if there were too many.
        hashes: uint64 (M, 4), what they look like (`data.perceptual.hashes_of`), of all or of those that were decoded
            when the training started; None if it kept none.
    """

    contents: np.ndarray
    share: float
    hashes: np.ndarray | None = None


class NotKeptError(Exception):
    """Why it is unknown which images a training has seen."""


def log_seen_images(run: StageRun, dataset: Dataset, seen: np.ndarray, decoded: Sequence[np.ndarray] = ()) -> None:
    """Log the contents of the images that a training may see as an artifact of its run.

    Args:
        seen: int64 (n,), indices into the dataset; at most `MOST` of them are recorded, evenly spaced.
        decoded: images that the training may see and that are decoded already; hashed by another
            thread, while the training runs.
    """
    recorded = evenly_spaced(seen, MOST)
    contents = np.unique(dataset.contents.of(recorded))
    share = np.array([len(recorded) / len(seen) if len(seen) else 1.0])
    tensors = {"contents": contents[contents != UNKNOWN], "share": share}

    def fill(folder: Path) -> None:
        known = {"hashes": np.unique(hashes_of(decoded), axis=0).view(np.int64)} if len(decoded) else {}
        versions = {"version": str(VERSION), HASHES: str(PERCEPTUAL)}
        safetensors.numpy.save_file(tensors | known, folder / SEEN_IMAGES_FILE, versions)

    run.files([SEEN_IMAGES_FILE], fill)


def seen_images(run_id: str) -> SeenImages:
    """The images that a training saw.

    Raises:
        NotKeptError: they are not recorded, unreadable, or recorded by a version that compared images differently.
    """
    with tempfile.TemporaryDirectory() as temporary:
        try:
            file = MlflowClient().download_artifacts(run_id, SEEN_IMAGES_FILE, temporary)
            with safetensors.safe_open(file, "numpy") as opened:
                if (opened.metadata() or {}).get("version") != str(VERSION):
                    raise NotKeptError(f"run {run_id} was made by another version of hpt_mlflow")
                contents, share = opened.get_tensor("contents"), float(opened.get_tensor("share").item())
                has_hashes = "hashes" in opened.keys() and opened.metadata().get(HASHES) == str(PERCEPTUAL)  # noqa: SIM118
                hashes = opened.get_tensor("hashes") if has_hashes else None
        except MlflowException as error:
            raise NotKeptError(f"{SEEN_IMAGES_FILE} of run {run_id} is not there ({reason(error)})") from error
        except (OSError, KeyError, ValueError, safetensors.SafetensorError) as error:
            raise NotKeptError(f"{SEEN_IMAGES_FILE} of run {run_id} cannot be read ({one_line(error)})") from error
    if contents.dtype != np.int64 or contents.ndim != 1 or not 0 < share <= 1:
        raise NotKeptError(f"{SEEN_IMAGES_FILE} of run {run_id} is damaged")
    if hashes is not None and (hashes.dtype != np.int64 or hashes.ndim != 2 or hashes.shape[1] != HASHED**2 // 64):
        raise NotKeptError(f"{SEEN_IMAGES_FILE} of run {run_id} is damaged")
    return SeenImages(contents, share, None if hashes is None else hashes.view(np.uint64))
