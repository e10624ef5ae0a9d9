"""Training views of labelled images, made on the fly: random resized crop and flip, as linear evaluation uses them."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import repeat
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hpt_mlflow.augment.crop import random_crop
from hpt_mlflow.augment.views import normalise
from hpt_mlflow.data.decode import UnreadableImageError
from hpt_mlflow.data.images import Images
from hpt_mlflow.data.statistics import ChannelStatistics
from hpt_mlflow.errors import HptError

# The default of torchvision's RandomResizedCrop, which the paper's reference code leaves as it is.
CROP_SCALE = (0.08, 1.0)
FLIP_P = 0.5
# Batches that threads prepare while the one before is computed on.
AHEAD = 2


class LabelledBatch(NamedTuple):
    """The views of one step.

    Attributes:
        views: float32 (N, 3, size, size), normalised, channels_last, on the device.
        positions: int64 (N,), which of the `indices` they are views of.
    """

    views: Tensor
    positions: np.ndarray


@dataclass(frozen=True)
class TrainingViews:
    """Batches of augmented images for training with labels: a function of seed and step, whatever the threads.

    Images come in the order of reshuffled epochs, one after another without a gap: each is seen equally often, but for
    one, and a batch may be larger than the dataset.

    Attributes:
        images: keeps images of at least `smallest_useful_side(image_size, CROP_SCALE)` pixels, or crops get enlarged.
        indices: int64 (N,), which of them are trained on.
        image_size: side of the views in pixels.
        statistics: what they are normalised with.
        batch_size: views a step.
        threads: that decode and crop; None for one a processor.
    """

    images: Images
    indices: np.ndarray
    image_size: int
    statistics: ChannelStatistics
    device: torch.device
    batch_size: int
    seed: int
    threads: int | None = None

    def batches(self, steps: int) -> Iterator[LabelledBatch]:
        """The batches of the first `steps` steps; an image that cannot be read any more is left out and reported.

        Raises:
            HptError: too many images cannot be read any more, or all of a batch.
        """
        mean, std = (torch.tensor(s, device=self.device) for s in (self.statistics.mean, self.statistics.std))
        epoch_order = lru_cache(maxsize=2)(self._epoch_order)
        pool = ThreadPoolExecutor(max(1, (os.cpu_count() or 1) if self.threads is None else self.threads))
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
                    batch = torch.from_numpy(crops).to(self.device).permute(0, 3, 1, 2)
                    batch = batch.contiguous(memory_format=torch.channels_last)
                    yield LabelledBatch(normalise(batch.float() / 255, mean, std), positions)
        finally:
            pool.shutdown(cancel_futures=True)

    def _epoch_order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self.seed, epoch, 1)).permutation(len(self.indices))

    def _view(self, step: int, place: int, position: int) -> np.ndarray | str:
        """The view at a place of a step's batch, uint8 (size, size, 3), or why its image cannot be read."""
        try:
            image = self.images[int(self.indices[position])]
        except UnreadableImageError as error:
            return str(error)
        # Threads finish in any order, so each view draws from a generator of its own.
        rng = np.random.default_rng((self.seed, step, place, 2))
        view = random_crop(image, self.image_size, rng, CROP_SCALE)
        return view[:, ::-1] if rng.random() < FLIP_P else view

    def _readable(self, positions: np.ndarray, views: Iterator[np.ndarray | str]) -> tuple[np.ndarray, np.ndarray]:
        """What could be read of a batch, uint8 (N, size, size, 3), and its positions."""
        found, kept, unreadable = [], [], []
        for position, view in zip(positions, views, strict=True):
            if isinstance(view, str):
                unreadable.append((int(self.indices[position]), view))
            else:
                found.append(view)
                kept.append(position)
        self.images.report_unreadable(unreadable)
        if not found:
            raise HptError(
                f"data: none of {len(positions)} images of {self.images.dataset.name} in a batch can be read any more; "
                f"the first: {unreadable[0][1]}"
            )
        return np.stack(found), np.array(kept, dtype=np.int64)
