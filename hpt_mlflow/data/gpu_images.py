"""Decoded images in the memory of a GPU, where crops are cut without waiting for processes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hpt_mlflow.augment.crop_kernels import crop_boxes
from hpt_mlflow.augment.draws import CropDraws
from hpt_mlflow.augment.in_batches import send
from hpt_mlflow.augment.on_gpu import cut, cuts
from hpt_mlflow.augment.subset import Strengths
from hpt_mlflow.data.errors import UnreadableImageError
from hpt_mlflow.data.images import Images
from hpt_mlflow.data.packed import Packed

# Of the free memory of a GPU; a training needs the rest.
LARGEST_SHARE = 0.25
# Numbers that are sent at once.
PIECE = 1 << 26


class GpuImages:
    """The images of a training by their places in the memory of a GPU."""

    def __init__(self, images: Images, packed: Packed, device: torch.device) -> None:
        """
        Args:
            packed: all of the images.
        """
        self._images = images
        numbers = packed.numbers()
        self._pixels = torch.empty(len(numbers), dtype=getattr(torch, numbers.dtype.name), device=device)
        for start in range(0, len(numbers), PIECE):
            piece = slice(start, start + PIECE)
            # A copy, as torch may write to what it is given, and mapped files are read-only.
            self._pixels[piece] = torch.from_numpy(numbers[piece].copy())
        self._layout = packed.layout()
        self._places = packed.places()

    @property
    def nbytes(self) -> int:
        """How much of the GPU's memory they take."""
        return self._pixels.nbytes

    def __getitem__(self, index: int) -> int:
        """The place of the image at an index into the dataset.

        Raises:
            UnreadableImageError: it is known to be unreadable, as other processes have found.
            KeyError: it is not among these.
        """
        if int(index) in self._images.unreadable:
            raise UnreadableImageError(self._images.unreadable[int(index)])
        place = int(self._places[index])
        if place < 0:
            raise KeyError(index)
        return place

    def crop_views(
        self, places: Sequence[int], size: int, subset: Sequence[str], strengths: Strengths, draws: CropDraws
    ) -> Tensor:
        """`augment.views.crop_views` of the images at these places, on the GPU.

        Some pixels are one level apart: sums are rounded otherwise, and Pillow rounds central squares twice.
        """
        begins, widths, heights = self._layout[:, np.asarray(places, dtype=np.int64)]
        views, channels = len(draws.shapes), self._images.pixels.channels
        if "crop" in subset:
            boxes = crop_boxes(draws.shapes, draws.places, widths, heights, *strengths.crop_scale)
        else:
            sides = np.minimum(widths, heights)
            boxes = np.stack([(widths - sides) // 2, (heights - sides) // 2, sides, sides], axis=1)[None]
        rows = np.empty((views, len(places), 6), np.int64)
        rows[:, :, 0], rows[:, :, 1], rows[:, :, 2:] = begins, widths, boxes
        crops = cut(self._pixels, send(rows.reshape(-1, 6), self._pixels.device), size, channels)
        return crops.view(views, len(places), channels, size, size)


def images_on_gpu(images: Images, device: torch.device, trainings: int = 1) -> GpuImages | None:
    """The images in the memory of the GPU that trains on them, if all are decoded and take a small part of it.

    Args:
        trainings: side by side on this machine, each with its own images; all may be on this GPU.
    """
    packed = images.packed
    if device.type != "cuda" or packed is None or not len(packed):
        return None
    numbers = packed.numbers()
    # What torch keeps for later is free for this training, too.
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if numbers.nbytes > LARGEST_SHARE * (torch.cuda.mem_get_info(device)[0] + kept) / trainings:
        return None
    try:
        return GpuImages(images, packed, device) if cuts(device, getattr(torch, numbers.dtype.name)) else None
    except torch.OutOfMemoryError:
        return None
