"""A labelled folder of coloured noise, and a model that has learned from it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from hpt_mlflow.data.sources import open_dataset
from hpt_mlflow.settings import EvaluateSettings
from hpt_mlflow.stages.evaluation.task import prepare_task
from hpt_mlflow.tracking.models.store import find_model

TINY = {"arch": "shufflenet_v2_x0_5", "image_size": 32, "batch_size": 8, "precision": "float32"}


class Past(NamedTuple):
    """A model that has learned from a labelled folder: of red, green and blue noise, 20 images each."""

    images: Path
    model: str
    run_id: str

    @property
    def dataset(self):
        return open_dataset(str(self.images))


def write_colours(folder, count=60, seed=0, skill=8):
    rng = np.random.default_rng(seed)
    for i in range(count):
        pixels = rng.integers(0, 150, (36, 40, 3))
        pixels[..., i % 3] += skill
        file = folder / ("red", "green", "blue")[i % 3] / f"{i:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(file)
    return folder


def task_of(past, data, **settings):
    """The settings, the dataset and the task of an evaluation of the past's model."""
    chosen = EvaluateSettings(data=str(data), device="cpu", workers=1, **settings)
    dataset = open_dataset(chosen.data)
    return chosen, dataset, prepare_task(chosen, dataset, find_model(past.model, "model", "hpt").card)
