"""From a decoded image of any size to a square of fixed size: resize and centre crop."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

ASPECT_RATIO = (3 / 4, 4 / 3)
_FILTER = Image.Resampling.BILINEAR


def centre_crop(image: np.ndarray, size: int, resize_to: int | None = None) -> np.ndarray:
    """Resize the shorter side to `resize_to` (default: `size`) pixels and cut the central square of `size` pixels.

    Takes uint8 or uint16 (height, width, channels), gives the same of (size, size, channels).
    """
    height, width = image.shape[:2]
    # Cutting the square first and resizing it afterwards is the same picture, at bounded cost for a long strip.
    side = min(height, width)
    square = image[(height - side) // 2 :, (width - side) // 2 :][:side, :side]
    shorter = resize_to or size
    margin = (shorter - size) // 2
    resized = resize_pixels(square, shorter, shorter) if shorter != side else square
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


def resize_pixels(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """`resize` of uint8 or uint16 (height, width, channels); one channel at a time where they are not 8-bit RGB."""
    if pixels.dtype == np.uint8 and pixels.shape[2] == 3:
        return np.asarray(resize(Image.fromarray(pixels), width, height))
    # Pillow has no type of several channels, and of 16 bits only floats are resized without rounding in between.
    exact = np.dtype(np.uint8 if pixels.dtype == np.uint8 else np.float32)
    planes = (Image.fromarray(np.ascontiguousarray(plane, exact)) for plane in np.moveaxis(pixels, 2, 0))
    resized = np.stack([np.asarray(resize(plane, width, height)) for plane in planes], axis=2)
    return resized if exact == pixels.dtype else (resized + 0.5).astype(pixels.dtype)
