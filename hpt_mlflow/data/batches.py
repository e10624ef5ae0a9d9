"""The batches of a training run: a pure function of seed and step, whatever the number of processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from hpt_mlflow.augment.draws import draw_crops
from hpt_mlflow.augment.multicrop import NONE, LocalViews, local_strengths
from hpt_mlflow.augment.subset import Strengths
from hpt_mlflow.augment.views import crop_views
from hpt_mlflow.data.errors import UnreadableImageError, data_error
from hpt_mlflow.data.gpu_images import GpuImages
from hpt_mlflow.data.images import Images


class Batch(NamedTuple):
    """The crops of a step.

    Attributes:
        crops: of each image, uint8 or uint16 (views, n, channels, size, size); on a GPU if the images are there.
        local_crops: for small views, the same of (local views, n, channels, side, side); empty if there are none.
        unreadable: index of an image and reason.
    """

    crops: Tensor
    local_crops: Tensor
    unreadable: list[tuple[int, str]]


class ViewBatches(Dataset[Batch]):
    """Batches by step, or this process's share of each batch if several processes train together.

    Images are shuffled again in each epoch, and an epoch's last, incomplete batch is dropped.
    """

    def __init__(
        self,
        images: Images,
        batch_size: int,
        image_size: int,
        subset: Sequence[str],
        strengths: Strengths,
        seed: int,
        part: slice | None = None,
        views: int = 2,
        local: LocalViews = NONE,
        gpu_images: GpuImages | None = None,
    ) -> None:
        """
        Args:
            batch_size: images per batch, over all processes.
            image_size: side of the crops in pixels.
            part: the share of this process; None for the whole batch.
            views: crops of full size per image.
            local: small crops.
            gpu_images: the same images, if their crops are cut on a GPU; only this process can make batches then.
        """
        self.images = images
        self.batch_size = batch_size
        self.image_size = image_size
        self.subset = tuple(subset)
        self.strengths = strengths
        self.seed = seed
        self.part = part or slice(0, batch_size)
        self.views = views
        self.local = local
        self.gpu_images = gpu_images

    def __getitem__(self, task: tuple[int, np.ndarray]) -> Batch:
        """The crops of a step.

        Args:
            task: the step, and which images (see `tasks`). The training process shuffles: otherwise each worker would
                hold a copy of the order.
        """
        step, indices = task
        images = self.gpu_images or self.images
        cut: Callable[..., Tensor] = self.gpu_images.crop_views if self.gpu_images else crop_views
        found, unreadable = [], []
        for place, index in enumerate(indices, self.part.start):
            image, tries = None, 0
            while image is None:
                try:
                    image = images[index]
                except UnreadableImageError as error:
                    unreadable.append((int(index), str(error)))
                    if tries > self.batch_size:
                        name = self.images.dataset.name
                        raise data_error(f"no image of {name} can be read any more: {error}") from error
                    tries += 1
                    index = np.random.default_rng((self.seed, step, place, tries)).choice(self.images.indices)
            found.append(image)
        # Drawn for the whole batch, so that the number of processes makes no difference.
        rng = np.random.default_rng((self.seed, step))
        draws = draw_crops(rng, self.batch_size, self.views).part(self.part)
        crops = cut(found, self.image_size, self.subset, self.strengths, draws)
        local_crops = torch.empty(0)
        if self.local.views:
            draws = draw_crops(rng, self.batch_size, self.local.views).part(self.part)
            strengths = local_strengths(self.strengths)
            local_crops = cut(found, self.local.side, self.subset, strengths, draws)
        return Batch(crops, local_crops, unreadable)

    def tasks(self, steps: range) -> Iterator[tuple[int, np.ndarray]]:
        """What `__getitem__` takes for each of these steps in order."""
        per_epoch = len(self.images.indices) // self.batch_size
        shuffled, order = -1, np.array([], dtype=np.int64)
        for step in steps:
            epoch, position = divmod(step, per_epoch)
            if epoch != shuffled:
                order = np.random.default_rng((self.seed, epoch, 1)).permutation(self.images.indices)
                shuffled = epoch
            yield step, order[position * self.batch_size :][self.part].copy()

    def nbytes(self) -> int:
        """Size of a batch in bytes."""
        pixels = self.views * self.image_size**2 + self.local.views * self.local.side**2
        count = self.part.stop - self.part.start
        return count * pixels * self.images.pixels.pixel_bytes
