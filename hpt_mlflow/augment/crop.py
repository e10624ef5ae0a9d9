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
    """`resize` of uint8 or uint16 (height, width, channels), each channel alone."""
    if pixels.dtype == np.uint8:
        # Pillow has no type of more channels; this one of four is resized as they are.
        groups = (pixels[:, :, i : i + 4] for i in range(0, pixels.shape[2], 4))
        return np.concatenate([_resize_few(group, width, height) for group in groups], axis=2)
    # Of 16 bits, only floats are resized without rounding in between.
    planes = (Image.fromarray(np.ascontiguousarray(plane, np.float32)) for plane in np.moveaxis(pixels, 2, 0))
    resized = np.stack([np.asarray(resize(plane, width, height)) for plane in planes], axis=2)
    return (resized + 0.5).astype(pixels.dtype)


def _resize_few(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """`resize` of uint8 with one to four channels."""
    channels = pixels.shape[2]
    padded = pixels if channels != 2 else np.concatenate([pixels, pixels[:, :, :1]], axis=2)
    mode = {1: "L", 3: "RGB", 4: "CMYK"}[padded.shape[2]]
    image = Image.frombytes(mode, (pixels.shape[1], pixels.shape[0]), np.ascontiguousarray(padded).data)
    return np.asarray(resize(image, width, height)).reshape(height, width, -1)[:, :, :channels]
