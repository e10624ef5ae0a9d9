"""Views on a processor: what `in_batches` does in torch for other devices, one image after another in compiled loops.

Channels are taken out of an image by index: unpacked, numba no longer knows that they are contiguous, and does not
vectorise. An image of 64 pixels fits into the L1 cache, and a batch does not: five to ten times as fast as whole
batches in torch (benchmarks/views_speed.py). The loops release Python's lock, so that threads share a batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

from hpt_mlflow.augment.color import GRAY_WEIGHTS

# float32, so that no arithmetic becomes double.
RED, GREEN, BLUE = map(np.float32, GRAY_WEIGHTS)
ZERO, ONE, TWO, FOUR, SIX = (np.float32(number) for number in (0, 1, 2, 4, 6))
HALF, TINY = np.float32(0.5), np.float32(1e-12)
FIVE_SIXTHS, THREE_SIXTHS, ONE_SIXTH = np.float32(5 / 6), np.float32(3 / 6), np.float32(1 / 6)

Array = np.ndarray


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function at its first call, and cache the result for other processes if a folder is writable."""
    try:
        return njit(nogil=True, fastmath=True, cache=True)(function)
    except RuntimeError:  # neither the package's folder nor the user's cache can be written to
        return njit(nogil=True, fastmath=True)(function)


@kernel
def finish(
    crops: Array,
    color: Array,
    order: Array,
    factors: Array,
    gray: Array,
    sigma: Array,
    radius: int,
    flip: Array,
    scale: np.float32,
    mean: Array,
    std: Array,
    out: Array,
) -> None:
    """Colour, grey, blur, flip and normalise crops, uint8 or uint16 (N, C, x, y), into `out`, float32 (N, y, x, C).

    Args:
        color, order, factors, gray, sigma, flip: see `draws.FinishDraws`.
        radius: of the blur, in pixels.
        scale: 1 / white.
        mean, std: float32 (C,).
    """
    channels, width, height = crops.shape[1], crops.shape[2], crops.shape[3]
    planes = np.empty((channels, width * height), np.float32)
    for n in range(len(crops)):
        for channel in range(channels):
            pixels, plane = crops[n, channel].reshape(-1), planes[channel]
            for i in range(width * height):
                plane[i] = pixels[i] * scale
        if color[n]:
            for operation in order[n]:
                adjust(planes, operation, factors[n, operation])
        if gray[n] and channels == 3:
            to_gray(planes)
        if sigma[n] > 0:
            weights = blur_weights(sigma[n], radius)
            for channel in range(channels):
                blur(planes[channel].reshape(width, height), weights)
        for x in range(width):
            to = width - 1 - x if flip[n] else x
            for channel in range(channels):
                plane, factor, offset = planes[channel], ONE / std[channel], mean[channel]
                for y in range(height):
                    out[n, y, to, channel] = (plane[x * height + y] - offset) * factor


@kernel
def adjust(planes: Array, operation: int, factor: np.float32) -> None:
    """Brightness, contrast, saturation or hue of an image, float32 (C, pixels), in place; see `color`."""
    if len(planes) != 3:
        if operation <= 1:
            adjust_bands(planes, operation, factor)
    elif operation == 0:
        blend(planes, ZERO, ZERO, factor)
    elif operation == 1:
        red, green, blue = planes[0], planes[1], planes[2]
        total = ZERO
        for i in range(len(red)):
            total += RED * red[i] + GREEN * green[i] + BLUE * blue[i]
        blend(planes, total / np.float32(len(red)), ZERO, factor)
    elif operation == 2:
        blend(planes, ZERO, ONE, factor)
    else:
        turn_hue(planes, factor)


@kernel
def adjust_bands(planes: Array, operation: int, factor: np.float32) -> None:
    """Brightness or contrast of each band alone, float32 (C, pixels), in place; see `color.blend_bands`."""
    rest = ONE - factor
    for channel in range(len(planes)):
        plane, level = planes[channel], ZERO
        if operation == 1:
            for i in range(len(plane)):
                level += plane[i]
            level /= np.float32(len(plane))
        for i in range(len(plane)):
            plane[i] = min(max(rest * level + factor * plane[i], ZERO), ONE)


@kernel
def blend(planes: Array, level: np.float32, grayness: np.float32, factor: np.float32) -> None:
    """`factor` of the image and the rest of a constant level, or (grayness 1) of its own grey; clamped, in place."""
    red, green, blue = planes[0], planes[1], planes[2]
    rest = ONE - factor
    for i in range(len(red)):
        r, g, b = red[i], green[i], blue[i]
        base = rest * (level + grayness * (RED * r + GREEN * g + BLUE * b))
        red[i] = min(max(base + factor * r, ZERO), ONE)
        green[i] = min(max(base + factor * g, ZERO), ONE)
        blue[i] = min(max(base + factor * b, ZERO), ONE)


@kernel
def turn_hue(planes: Array, factor: np.float32) -> None:
    """Turn the hue by `factor` of the circle, in place; the formulas are those of `color.adjust_hue`."""
    red, green, blue = planes[0], planes[1], planes[2]
    for i in range(len(red)):
        r, g, b = red[i], green[i], blue[i]
        value = max(r, g, b)
        chroma = value - min(r, g, b)
        difference, start = g - b, ZERO
        if value != r:
            difference = b - r if value == g else r - g
            start = TWO if value == g else FOUR
        hue = (difference / max(chroma, TINY) + start) / SIX + factor + TWO
        red[i] = value - chroma * share(hue + FIVE_SIXTHS)
        green[i] = value - chroma * share(hue + THREE_SIXTHS)
        blue[i] = value - chroma * share(hue + ONE_SIXTH)


@kernel
def share(position: np.float32) -> np.float32:
    """The share of the chroma that a channel lacks at a position on the circle."""
    place = (position - np.float32(math.floor(position))) * SIX
    return min(max(TWO - abs(place - TWO), ZERO), ONE)


@kernel
def to_gray(planes: Array) -> None:
    """Brightness in all channels; in place."""
    red, green, blue = planes[0], planes[1], planes[2]
    for i in range(len(red)):
        level = RED * red[i] + GREEN * green[i] + BLUE * blue[i]
        red[i] = level
        green[i] = level
        blue[i] = level


@kernel
def blur_weights(sigma: np.float32, radius: int) -> Array:
    """Half of a Gaussian, float32 (radius + 1,), whose whole sums to 1."""
    weights = np.empty(radius + 1, np.float32)
    total = ZERO
    for i in range(radius + 1):
        weights[i] = math.exp(-(i * i) / (TWO * sigma * sigma))
        total += weights[i] * (TWO if i else ONE)
    return weights / total


@kernel
def blur(plane: Array, weights: Array) -> None:
    """Blur float32 (width, height) along both axes, borders reflected; in place."""
    width, height = plane.shape
    radius = min(len(weights), width, height) - 1
    if radius < len(weights) - 1:
        weights = weights[: radius + 1] / (TWO * weights[: radius + 1].sum() - weights[0])
    # With a border, the whole plane is one line for either direction.
    wide, high = width + 2 * radius, height + 2 * radius
    padded, half = np.empty((wide, high), np.float32), np.empty((wide, high), np.float32)
    padded[radius : radius + width, radius : radius + height] = plane
    for x in range(radius, radius + width):
        for i in range(1, radius + 1):
            padded[x, radius - i] = padded[x, radius + i]
            padded[x, radius + height - 1 + i] = padded[x, radius + height - 1 - i]
    for i in range(1, radius + 1):
        padded[radius - i] = padded[radius + i]
        padded[radius + width - 1 + i] = padded[radius + width - 1 - i]
    add_neighbours(padded.reshape(-1), half.reshape(-1), weights, 1)
    add_neighbours(half.reshape(-1), padded.reshape(-1), weights, high)
    plane[:] = padded[radius : radius + width, radius : radius + height]


@kernel
def add_neighbours(line: Array, out: Array, weights: Array, stride: int) -> None:
    """The weighted sum of each pixel and its neighbours at multiples of a stride, except at the ends of the line."""
    edge = (len(weights) - 1) * stride
    length = len(line) - 2 * edge
    inner, target = line[edge : edge + length], out[edge : edge + length]
    for i in range(length):
        target[i] = weights[0] * inner[i]
    for k in range(1, len(weights)):
        before, after = line[edge - k * stride :][:length], line[edge + k * stride :][:length]
        for i in range(length):
            target[i] += weights[k] * (before[i] + after[i])
