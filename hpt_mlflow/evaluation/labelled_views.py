"""Training views of labelled images, made on the fly: random resized crop and flip, as in linear evaluation."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import repeat
from typing import NamedTuple

import numpy as np
from torch import Tensor

from hpt_mlflow.augment.draws import draw_crops
from hpt_mlflow.augment.subset import Strengths
from hpt_mlflow.augment.views import crop_views
from hpt_mlflow.errors import HptError
from hpt_mlflow.evaluation.features import FeatureReader, to_input

# The default of torchvision's RandomResizedCrop, which the paper's reference code does not change.
CROP_SCALE = (0.08, 1.0)
FLIP_P = 0.5
# Batches that threads prepare while an earlier one is computed on.
AHEAD = 2


class LabelledBatch(NamedTuple):
    """The views of one step.

    Attributes:
        views: float32 (N, channels, size, size), normalised, channels_last, on the device.
        positions: int64 (N,), which of the `indices` they are views of.
    """

    views: Tensor
    positions: np.ndarray


@dataclass(frozen=True)
class TrainingViews:
    """Batches of augmented images for training with labels: a function of seed and step, for any number of threads.

    Images come in reshuffled epochs without a gap between them: all are seen equally often, give or take one, and a
    batch may be larger than the dataset.

    Attributes:
        reader: its images keep `smallest_useful_side(image_size, CROP_SCALE)` pixels or more, or crops get enlarged.
        indices: int64 (N,), which of its images are trained on.
        batch_size: views per step.
    """

    reader: FeatureReader
    indices: np.ndarray
    batch_size: int
    seed: int

    def batches(self, steps: int) -> Iterator[LabelledBatch]:
        """The batches of the first `steps` steps; images that have become unreadable are left out and reported.

        Raises:
            HptError: too many images have become unreadable, or all of a batch.
        """
        epoch_order = lru_cache(maxsize=2)(self._epoch_order)
        pool = self.reader.pool()
        try:
            waiting: deque[tuple[np.ndarray, Iterator[np.ndarray | str]]] = deque()
            for step in range(steps + AHEAD):
                if step < steps:
                    start = step * self.batch_size
                    drawn = [divmod(i, len(self.indices)) for i in range(start, start + self.batch_size)]
                    positions = np.array([epoch_order(epoch)[i] for epoch, i in drawn], dtype=np.int64)
                    places = range(self.batch_size)
                    waiting.append((positions, pool.map(self._view, repeat(step), places, positions.tolist())))
                if step >= AHEAD:
                    crops, positions = self._readable(*waiting.popleft())
                    yield LabelledBatch(to_input(crops, self.reader.statistics, self.reader.device), positions)
        finally:
            pool.shutdown(cancel_futures=True)

    def _epoch_order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self.seed, epoch, 1)).permutation(len(self.indices))

    def _view(self, step: int, place: int, position: int) -> np.ndarray | str:
        """The view at a place of a step's batch, (size, size, channels), or why its image cannot be read."""
        image = self.reader.read(int(self.indices[position]))
        if isinstance(image, str):
            return image
        # Threads finish in any order, so each view has its own generator.
        rng = np.random.default_rng((self.seed, step, place, 2))
        strengths = Strengths(crop_scale=CROP_SCALE)
        crops = crop_views([image], self.reader.image_size, ("crop",), strengths, draw_crops(rng, 1, views=1))
        view = crops[0, 0].permute(1, 2, 0).numpy()
        return view[:, ::-1] if rng.random() < FLIP_P else view

    def _readable(
        self, positions: np.ndarray, views: Iterator[np.ndarray | str]
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """The readable views of a batch, (size, size, channels) each, and their positions."""
        made = list(views)
        images = self.reader.images
        images.report_unreadable(
            (int(self.indices[position]), view)
            for position, view in zip(positions, made, strict=True)
            if isinstance(view, str)
        )
        readable = {place: view for place, view in enumerate(made) if not isinstance(view, str)}
        if not readable:
            raise HptError(
                f"none of {len(positions)} images of {images.dataset.name} in a batch can be read any more, the first "
                f"because {made[0]}",
                setting="data",
            )
        return list(readable.values()), positions[list(readable)]
