"""Views on a GPU and other devices: whole batches in torch, all images through the same operations.

What is done to each image is numbers on the device, so that the operations and their shapes are the same in each step:
the processor never waits for the device, and a CUDA graph can hold them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hpt_mlflow.augment import color
from hpt_mlflow.augment.draws import FinishDraws

# As `draws.FinishDraws` counts the operations; 0, brightness, blends with black.
CONTRAST, SATURATION, HUE = 1, 2, 3
BLENDS = 3


class Applied(NamedTuple):
    """Which augmentations a batch may need at all."""

    color: bool
    gray: bool
    blur: bool
    flip: bool

    @classmethod
    def by(cls, draws: FinishDraws) -> Applied:
        """What some draws need."""
        return cls(*(bool(np.any(values)) for values in (draws.color, draws.gray, draws.sigma > 0, draws.flip)))

    @classmethod
    def of_subset(cls, subset: Sequence[str]) -> Applied:
        """What any draws for a subset of augmentations may need."""
        return cls(*(name in subset for name in cls._fields))


def table_of(draws: FinishDraws, channels: int) -> np.ndarray:
    """What is done to each of N images, float32 (17, N).

    Hue is turned once, between two rounds of three blends: a blend that comes before it changes nothing in the second
    round, and one that comes after it nothing in the first. Images of other channels than RGB have no colour, only
    brightness and contrast.

    Returns:
        Factors of the first round, of the second, whether they blend with an image's grey, and with its mean grey (3
        rows each); whether hue is turned, and how far; grey; sigma of the blur; and flip (1 row each).
    """
    order, colored = draws.order, draws.color[:, None]
    is_hue = order == HUE
    blends = order[~is_hue].reshape(len(order), BLENDS)
    is_first = np.arange(BLENDS) < is_hue.argmax(axis=1, keepdims=True)
    factors = np.take_along_axis(draws.factors, blends, axis=1)
    hue = draws.color & (channels == 3)
    if channels != 3:
        colored, is_first = colored & (blends != SATURATION), np.ones_like(is_first)
    first, second = np.where(colored & is_first, factors, 1), np.where(colored & ~is_first, factors, 1)
    rows = (first.T, second.T, (blends == SATURATION).T, (blends == CONTRAST).T)
    others = (hue, np.where(hue, draws.factors[:, HUE], 0), draws.gray, draws.sigma, draws.flip)
    return np.vstack([*rows, *others]).astype(np.float32)


def finish_plainly(crops: Tensor, table: Tensor, applied: Applied, radius: int, mean: Tensor, std: Tensor) -> Tensor:
    """`on_gpu.finish_by_table` by operations of torch."""
    images = crops.float().div_(color.white(crops))
    has_colour = images.shape[1] == 3
    first, second, grayness, mean_grayness = table[: 4 * BLENDS].view(4, BLENDS, -1)
    turned, hue, gray, sigma, flipped = table[4 * BLENDS :]
    if applied.color and has_colour:
        for turn in range(BLENDS):
            images = color.blend(images, first[turn], grayness[turn], mean_grayness[turn])
        images = torch.where(_where(turned), color.adjust_hue(images, hue), images)
        for turn in range(BLENDS):
            images = color.blend(images, second[turn], grayness[turn], mean_grayness[turn])
    elif applied.color:
        for turn in range(BLENDS):
            images = color.blend_bands(images, first[turn], mean_grayness[turn])
    if applied.gray and has_colour:
        images = torch.where(_where(gray), color.rgb_to_grayscale(images), images)
    if applied.blur:
        # Where it is 0, any other number will do.
        blurred = color.gaussian_blur(images, torch.where(sigma > 0, sigma, 1), radius)
        images = torch.where(_where(sigma), blurred, images)
    if applied.flip:
        images = torch.where(_where(flipped), images.flip(-1), images)
    return color.normalise(images, mean, std).contiguous(memory_format=torch.channels_last)


def send(values: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """To the device; to a GPU without waiting for what it is doing."""
    tensor = torch.as_tensor(values)
    # Without pinned memory of its own, what is sent might be gone before it is read.
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _where(numbers: Tensor) -> Tensor:
    """Which images have a number that is not 0, bool (N, 1, 1, 1)."""
    return (numbers != 0).view(-1, 1, 1, 1)
