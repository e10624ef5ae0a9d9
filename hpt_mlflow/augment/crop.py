"""From a decoded image of any size to a square of fixed size: resize and centre crop."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch.nn import functional as F

ASPECT_RATIO = (3 / 4, 4 / 3)


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
    return _resize(square, shorter, shorter)[margin : margin + size, margin : margin + size]


def smallest_useful_side(size: int, scale: tuple[float, float]) -> int:
    """Pixels of the shorter side above which more resolution changes no crop of `size` pixels.

    The narrowest crop takes sqrt(smallest area * smallest aspect ratio) of the shorter side. As long as it holds `size`
    pixels, no crop is enlarged, so larger images may be kept reduced to this side.
    """
    return math.ceil(size / math.sqrt(scale[0] * ASPECT_RATIO[0]))


def _resize(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Bilinear with antialiasing, as RandomResizedCrop does it; twice as fast as Pillow on small images."""
    if image.shape[:2] == (height, width):
        return image
    writeable = image if image.flags.writeable else image.copy()
    tensor = torch.from_numpy(writeable).permute(2, 0, 1)[None]  # 1 x 3 x H x W
    resized = F.interpolate(tensor, size=(height, width), mode="bilinear", antialias=True)
    return resized[0].permute(1, 2, 0).numpy()
