"""Which images a training has seen: kept with its run, so that nobody tests on them by mistake."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from hpt_mlflow.tracking.runs import StageRun

FILE = "seen_images.safetensors"


def log_seen_images(run: StageRun, fingerprints: np.ndarray) -> None:
    """Keep the fingerprints of the images that a training may see, int64 (N,), as an artifact of its run."""
    ordered = np.unique(fingerprints)

    def fill(folder: Path) -> None:
        safetensors.numpy.save_file({"fingerprints": ordered}, folder / FILE)

    run.tell("artifacts", {"files": [FILE]}, fill)


def seen_images(run_id: str) -> np.ndarray | None:
    """The fingerprints that a training kept, int64 (N,); None where it kept none that can be read."""
    with tempfile.TemporaryDirectory() as temporary:
        try:
            file = MlflowClient().download_artifacts(run_id, FILE, temporary)
            fingerprints: np.ndarray = safetensors.numpy.load_file(file)["fingerprints"]
            return fingerprints
        except (MlflowException, OSError, KeyError, safetensors.SafetensorError):
            return None
