"""The batches of a training: a pure function of seed and step, whatever the number of worker processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hpt_mlflow.augment.subset import Strengths
from hpt_mlflow.augment.views import crop_views
from hpt_mlflow.data.decode import UnreadableImageError
from hpt_mlflow.data.images import Images
from hpt_mlflow.errors import HptError
from hpt_mlflow.signals import WARNING


class Batch(NamedTuple):
    """Two crops of each image, uint8 (2, N, 3, size, size), and what could not be read: index and reason."""

    crops: Tensor
    unreadable: list[tuple[int, str]]


class ViewBatches(Dataset[Batch]):
    """Item k is the batch of step k.

    Images are shuffled anew in each epoch, and an epoch's last, incomplete batch is left out.
    """

    def __init__(
        self,
        images: Images,
        batch_size: int,
        image_size: int,
        subset: Sequence[str],
        strengths: Strengths,
        seed: int,
    ) -> None:
        self.images = images
        self.batch_size = batch_size
        self.image_size = image_size
        self.subset = tuple(subset)
        self.strengths = strengths
        self.seed = seed
        self.batches_per_epoch = len(images.indices) // batch_size
        self._order: tuple[int, np.ndarray] | None = None

    def __getitem__(self, step: int) -> Batch:
        rng = np.random.default_rng((self.seed, step))
        decoded, unreadable = [], []
        for index in self._indices(step):
            image = None
            while image is None:
                try:
                    image = self.images[index]
                except UnreadableImageError as error:
                    unreadable.append((int(index), str(error)))
                    if len(unreadable) > self.batch_size:
                        raise HptError(
                            f"data: no image of {self.images.dataset.name} can be read any more: {error}"
                        ) from error
                    index = rng.choice(self.images.indices)
            decoded.append(image)
        crops = crop_views(decoded, self.image_size, self.subset, self.strengths, rng)
        return Batch(crops, unreadable)

    def _indices(self, step: int) -> np.ndarray:
        epoch, position = divmod(step, self.batches_per_epoch)
        if self._order is None or self._order[0] != epoch:
            order = np.random.default_rng((self.seed, epoch, 1)).permutation(self.images.indices)
            self._order = (epoch, order)
        return self._order[1][position * self.batch_size : (position + 1) * self.batch_size]


def iterate(batches: ViewBatches, steps: range, workers: int, device: torch.device) -> Iterator[Batch]:
    """The batches of these steps in order, loaded by `workers` processes, or by this one where `workers` is 0."""
    loader = DataLoader(
        batches,
        batch_size=None,
        sampler=steps,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=_start_worker,
        persistent_workers=False,
        prefetch_factor=4 if workers else None,
    )
    try:
        yield from loader
    except HptError as error:
        # A worker's error comes with its traceback; what it says stands at the end.
        raise HptError(str(error).rstrip().rpartition("HptError: ")[2]) from None


def default_workers(images: Images, device: torch.device) -> int:
    """Worker processes that suit the machine: none where images need no decoding and the CPU is busy training."""
    if images.in_memory and device.type == "cpu":
        return 0
    return min(8, max(1, (os.cpu_count() or 1) - 1))


def _start_worker(worker: int) -> None:
    """Leave signals to the training process, which ends its workers itself."""
    for number in (signal.SIGINT, WARNING):
        if number:
            signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
