"""The random numbers of views, drawn for a whole batch before any image is touched.

A process that makes a part of a batch draws the same numbers as one that makes all of it, and views are the same on
every device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hpt_mlflow.augment.subset import Strengths

# What `torchvision.transforms.RandomResizedCrop` does before it takes a central box.
CROP_ATTEMPTS = 10
# Brightness, contrast, saturation and hue.
COLOR_OPERATIONS = 4


class CropDraws(NamedTuple):
    """Random numbers in [0, 1) for V crops of each of N images, whatever their sizes.

    Attributes:
        shapes: area and aspect ratio of each attempt, float64 (V, N, `CROP_ATTEMPTS`, 2).
        places: where the box lies, horizontally and vertically, float64 (V, N, 2).
    """

    shapes: np.ndarray
    places: np.ndarray

    def part(self, which: slice | np.ndarray) -> CropDraws:
        """The draws of some of the images."""
        return CropDraws(self.shapes[:, which], self.places[:, which])


class FinishDraws(NamedTuple):
    """What is done to one view of each of N images.

    Attributes:
        color: bool (N,), whether colours are jittered.
        order: int64 (N, 4), the operations in their order: 0 brightness, 1 contrast, 2 saturation, 3 hue.
        factors: float32 (N, 4), by operation; a factor that changes nothing where the strength is 0.
        gray: bool (N,).
        sigma: float32 (N,), of the blur in pixels; 0 for none.
        flip: bool (N,).
    """

    color: np.ndarray
    order: np.ndarray
    factors: np.ndarray
    gray: np.ndarray
    sigma: np.ndarray
    flip: np.ndarray

    def part(self, which: slice | np.ndarray) -> FinishDraws:
        """The draws of some of the images, in the given order."""
        # Contiguous, since the kernels would be compiled again for another layout.
        return FinishDraws(*(np.ascontiguousarray(values[which]) for values in self))


def draw_crops(rng: np.random.Generator, count: int, views: int = 2) -> CropDraws:
    """Draw for some crops of each of `count` images."""
    return CropDraws(rng.random((views, count, CROP_ATTEMPTS, 2)), rng.random((views, count, 2)))


def draw_finish(rng: np.random.Generator, count: int, subset: Sequence[str], strengths: Strengths) -> FinishDraws:
    """Draw for one view of each of `count` images what ColorJitter, RandomGrayscale, GaussianBlur and flip would do.

    The same numbers are drawn for every subset, so that subsets are compared on equal draws.
    """
    changed = rng.random((4, count)) < np.array(
        [
            [strengths.color_p * ("color" in subset)],
            [strengths.gray_p * ("gray" in subset)],
            [strengths.blur_p * ("blur" in subset)],
            [strengths.flip_p * ("flip" in subset)],
        ]
    )
    color, gray, blur, flip = changed
    order = rng.random((count, COLOR_OPERATIONS)).argsort(axis=1)
    spread = np.array([strengths.brightness, strengths.contrast, strengths.saturation, strengths.hue])
    factors = np.array([1, 1, 1, 0]) + spread * rng.uniform(-1, 1, (count, COLOR_OPERATIONS))
    sigma = np.where(blur, rng.uniform(*strengths.blur_sigma, count), 0)
    return FinishDraws(color, order, factors.astype(np.float32), gray, sigma.astype(np.float32), flip)


def blur_radius(strengths: Strengths) -> int:
    """Pixels at which the Gaussian is cut off: four of the largest standard deviations."""
    return math.ceil(4 * strengths.blur_sigma[1])
