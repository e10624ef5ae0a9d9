"""Random resized crops on a processor, one image after another in compiled loops; see `kernels`."""

from __future__ import annotations

import math

import numpy as np

from hpt_mlflow.augment.crop import ASPECT_RATIO
from hpt_mlflow.augment.kernels import HALF, ZERO, Array, kernel

LOG_RATIO = (math.log(ASPECT_RATIO[0]), math.log(ASPECT_RATIO[1]))


@kernel
def crop_box(
    shapes: Array, place: Array, width: int, height: int, low: float, high: float
) -> tuple[int, int, int, int]:
    """Draw the box of a random resized crop, as `torchvision.transforms.RandomResizedCrop.get_params` does.

    Args:
        shapes, place: see `draws.CropDraws`, of one crop.
        low, high: smallest and largest share of the area.

    Returns:
        Left, top, width and height in pixels. If no attempt fits into the image (a long strip), the largest central box
        of an allowed aspect ratio.
    """
    for attempt in range(len(shapes)):
        area = width * height * (low + (high - low) * shapes[attempt, 0])
        ratio = math.exp(LOG_RATIO[0] + (LOG_RATIO[1] - LOG_RATIO[0]) * shapes[attempt, 1])
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(place[0] * (width - w + 1)), int(place[1] * (height - h + 1)), w, h
    w = max(1, min(width, round(height * ASPECT_RATIO[1])))
    h = max(1, min(height, round(width / ASPECT_RATIO[0])))
    return (width - w) // 2, (height - h) // 2, w, h


@kernel
def crop_boxes(shapes: Array, places: Array, widths: Array, heights: Array, low: float, high: float) -> Array:
    """The boxes of V crops of each of N images, int64 (V, N, 4); see `crop_box`, `draws.CropDraws`."""
    boxes = np.empty((shapes.shape[0], shapes.shape[1], 4), np.int64)
    for view in range(len(boxes)):
        for i in range(len(widths)):
            left, top, width, height = crop_box(shapes[view, i], places[view, i], widths[i], heights[i], low, high)
            boxes[view, i, 0], boxes[view, i, 1], boxes[view, i, 2], boxes[view, i, 3] = left, top, width, height
    return boxes


@kernel
def triangle_weights(old: int, new: int) -> tuple[Array, Array, Array]:
    """Bilinear resampling of a line of `old` pixels to `new`, antialiased where it shrinks, as Pillow does it.

    Returns:
        First pixel (new,), number of pixels (new,), and their weights float32 (new, most).
    """
    scale = old / new
    support = max(scale, 1.0)
    first, count = np.empty(new, np.int64), np.empty(new, np.int64)
    weights = np.zeros((new, 2 * math.ceil(support) + 1), np.float32)
    for i in range(new):
        centre = (i + 0.5) * scale
        first[i] = max(int(centre - support + 0.5), 0)
        count[i] = min(int(centre + support + 0.5), old) - first[i]
        total = 0.0
        for j in range(count[i]):
            weight = max(0.0, 1 - abs((first[i] + j - centre + 0.5) / support))
            weights[i, j] = weight
            total += weight
        for j in range(count[i]):
            weights[i, j] /= total
    return first, count, weights


@kernel
def resize_box(image: Array, left: int, top: int, width: int, height: int, out: Array) -> None:
    """Resize a box of an image, uint8 or uint16 (H, W, C), into planes with x first, the same of (C, size, size)."""
    channels, size = out.shape[0], out.shape[1]
    pixels = image.reshape(image.shape[0], -1)
    first, count, weights = triangle_weights(height, size)
    line, lines = np.empty(width * channels, np.float32), np.empty((width * channels, size), np.float32)
    for y in range(size):
        line[:] = ZERO
        for j in range(count[y]):
            weight = weights[y, j]
            row = pixels[top + first[y] + j, left * channels : (left + width) * channels]
            for i in range(width * channels):
                line[i] += weight * row[i]
        for i in range(width * channels):
            lines[i, y] = line[i]
    # Columns are now contiguous in memory, so this pass, too, runs along whole lines.
    first, count, weights = triangle_weights(width, size)
    column = np.empty(size, np.float32)
    for x in range(size):
        for channel in range(channels):
            column[:] = HALF
            for j in range(count[x]):
                weight = weights[x, j]
                old = lines[(first[x] + j) * channels + channel]
                for y in range(size):
                    column[y] += weight * old[y]
            target = out[channel, x]
            for y in range(size):
                target[y] = column[y]


@kernel
def crop(image: Array, shapes: Array, place: Array, low: float, high: float, out: Array) -> None:
    """A random resized crop of an image, uint8 or uint16 (H, W, C), into `out`, the same of (C, x, y)."""
    left, top, width, height = crop_box(shapes, place, image.shape[1], image.shape[0], low, high)
    resize_box(image, left, top, width, height, out)
