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

from hpt_mlflow.data.fingerprints import UNKNOWN
from hpt_mlflow.tracking.runs import StageRun

FILE = "seen_images.safetensors"


class SeenImages(NamedTuple):
    """What a training kept of the images that it saw.

    Attributes:
        fingerprints: int64 (N,), ascending, each once.
        share: of how many of its images they are; less than 1 where there were too many to look at all of them.
    """

    fingerprints: np.ndarray
    share: float


def log_seen_images(run: StageRun, fingerprints: np.ndarray) -> None:
    """Keep the fingerprints of the images that a training may see, int64 (N,), as an artifact of its run."""
    kept = {
        "fingerprints": np.unique(fingerprints),
        "share": np.array([np.mean(fingerprints != UNKNOWN) if len(fingerprints) else 1.0]),
    }

    def fill(folder: Path) -> None:
        safetensors.numpy.save_file(kept, folder / FILE)

    run.tell("artifacts", {"files": [FILE]}, fill)


def seen_images(run_id: str) -> SeenImages | None:
    """What a training kept; None where it kept nothing that can be read. Earlier versions kept no share: it was 1."""
    with tempfile.TemporaryDirectory() as temporary:
        try:
            file = MlflowClient().download_artifacts(run_id, FILE, temporary)
            kept = safetensors.numpy.load_file(file)
            return SeenImages(kept["fingerprints"], float(kept.get("share", np.ones(1)).item()))
        except (MlflowException, OSError, KeyError, ValueError, safetensors.SafetensorError):
            return None
