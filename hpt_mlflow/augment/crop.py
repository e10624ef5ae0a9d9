"""From a decoded image of any size to a square of fixed size: resize and centre crop."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

ASPECT_RATIO = (3 / 4, 4 / 3)
_FILTER = Image.Resampling.BILINEAR


def centre_crop(image: np.ndarray, size: int, resize_to: int | None = None) -> np.ndarray:
    """Resize the shorter side to `resize_to` (default: `size`) pixels and cut the central square of `size` pixels.

    Takes uint8 (height, width, 3), gives uint8 (size, size, 3).
    """
    height, width = image.shape[:2]
    # Cutting the square first and resizing it afterwards is the same picture, at bounded cost for a long strip.
    side = min(height, width)
    square = image[(height - side) // 2 :, (width - side) // 2 :][:side, :side]
    shorter = resize_to or size
    margin = (shorter - size) // 2
    resized = np.asarray(resize(Image.fromarray(square), shorter, shorter)) if shorter != side else square
    return resized[margin : margin + size, margin : margin + size]


def smallest_useful_side(size: int, scale: tuple[float, float]) -> int:
    """Pixels of the shorter side above which more resolution changes no crop of `size` pixels.

    The narrowest crop takes sqrt(smallest area * smallest aspect ratio) of the shorter side. As long as it holds `size`
    pixels, no crop is enlarged, so larger images may be kept reduced to this side.
    """
    return math.ceil(size / math.sqrt(scale[0] * ASPECT_RATIO[0]))


def resize(image: Image.Image, width: int, height: int) -> Image.Image:
    """Bilinear with antialiasing, first the width and then the height.

    Left to itself, Pillow 13 takes the cheaper order and earlier versions this one: pixels would differ by a step.
    """
    return image.resize((width, image.height), _FILTER).resize((width, height), _FILTER)
