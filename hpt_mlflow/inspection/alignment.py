"""How much two thumbnails differ once one is laid over the other: a crop on the part that it was cut from."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from hpt_mlflow.augment.kernels import ZERO, kernel
from hpt_mlflow.cores import available_cores

Array = np.ndarray

STEPS = 8
# Part of the mean square by which a step has to help, or else it was the last.
LEAST_GAIN = 0.01
# How far a crop may reach beyond the picture, as a share of its side, and how small it may become.
BEYOND, SMALLEST = 0.03, 0.8
# Greater differences before and after the alignment are no copies, and are not measured in colour.
HOPELESS, NOT_CLOSE = 0.9, 0.6
UNALIKE = 9.0
PAIRS_AT_ONCE = 4096


def differences(thumbnails: Array, one: Array, other: Array, windows: Array, mirrored: Array) -> tuple[Array, Array]:
    """Of pairs of pictures, how much they differ in colour after the best alignment.

    `other` is laid on a part of `one`, which is moved and stretched from `windows` on to where they differ least in
    grey (Gauss-Newton, as Lucas and Kanade, IJCAI 1981).

    Args:
        thumbnails: uint8 (N, S, S, 3).
        one, other: int64 (P,), positions.
        windows: float64 (P, 4), top, left, height and width of the part as shares.
        mirrored: bool (P,), whether `other` is to be mirrored.

    Returns:
        The root mean square difference divided by the standard deviation of the two pictures, float32 (P,), `UNALIKE`
        if it is large; and the parts, float64 (P, 4).
    """
    found, aligned = np.empty(len(one), np.float32), np.array(windows, np.float64)
    order = np.argsort(one, kind="stable")  # a picture is fetched once for all its pairs

    def work(start: int) -> None:
        some = order[start : start + PAIRS_AT_ONCE]
        measured, parts = np.empty(len(some), np.float32), aligned[some]
        _measure_all(thumbnails, one[some], other[some], parts, mirrored[some], measured)
        found[some], aligned[some] = measured, parts

    with ThreadPoolExecutor(available_cores()) as pool:
        list(pool.map(work, range(0, len(one), PAIRS_AT_ONCE)))
    return found, aligned


@kernel
def _measure_all(thumbnails: Array, one: Array, other: Array, parts: Array, mirrored: Array, found: Array) -> None:
    for pair in range(len(one)):
        found[pair] = _measure(thumbnails[one[pair]], thumbnails[other[pair]], parts[pair], mirrored[pair])


@kernel
def _measure(whole: Array, crop: Array, part: Array, mirrored: bool) -> float:
    """The difference of two thumbnails, uint8 (S, S, 3); moves `part`, float64 (4,), in place."""
    side = len(whole)
    grey, shown, grey_crop, shown_crop = (
        np.empty((side, side), np.float32),
        np.empty((side, side, 3), np.float32),
        np.empty((side, side), np.float32),
        np.empty((side, side, 3), np.float32),
    )
    contrast = math.sqrt(_unpack(whole, False, grey, shown) * _unpack(crop, mirrored, grey_crop, shown_crop))
    if contrast < 1:
        return UNALIKE
    if math.sqrt(_misfit(grey, grey_crop, part)) > HOPELESS * contrast:
        return UNALIKE
    if math.sqrt(_align(grey, grey_crop, part)) > NOT_CLOSE * contrast:
        return UNALIKE
    total = ZERO
    for row in range(side):
        y, fy = _place(part[0], part[2], row, side)
        for column in range(side):
            x, fx = _place(part[1], part[3], column, side)
            for channel in range(3):
                top = shown[y, x, channel] + (shown[y, x + 1, channel] - shown[y, x, channel]) * fx
                low = shown[y + 1, x, channel] + (shown[y + 1, x + 1, channel] - shown[y + 1, x, channel]) * fx
                error = shown_crop[row, column, channel] - (top + (low - top) * fy)
                total += error * error
    return math.sqrt(total / (3 * side * side)) / contrast


@kernel
def _unpack(image: Array, mirrored: bool, grey: Array, shown: Array) -> float:
    """Write a thumbnail as floats, in grey and in colour; gives the standard deviation of its colours."""
    side = len(image)
    sums, square = np.zeros(3), 0.0
    for row in range(side):
        for column in range(side):
            at = side - 1 - column if mirrored else column
            for channel in range(3):
                value = np.float32(image[row, at, channel])
                shown[row, column, channel] = value
                sums[channel] += value
                square += float(value * value)
            red, green, blue = shown[row, column, 0], shown[row, column, 1], shown[row, column, 2]
            grey[row, column] = np.float32(0.299) * red + np.float32(0.587) * green + np.float32(0.114) * blue
    pixels = side * side
    return math.sqrt(max(0.0, square / pixels - (sums * sums).sum() / (pixels * pixels)) / 3)


@kernel
def _place(start: float, length: float, index: int, side: int) -> tuple[int, np.float32]:
    """The pixel before a place of a part, and how far the place is behind its centre."""
    place = (start + length * (index + 0.5) / side) * side - 0.5
    place = min(max(place, 0.0), side - 1.001)
    return int(place), np.float32(place - int(place))


@kernel
def _misfit(grey: Array, crop: Array, part: Array) -> float:
    """The mean square difference of a picture and the part of another, float32 (S, S) each."""
    side, total = len(grey), ZERO
    for row in range(side):
        y, fy = _place(part[0], part[2], row, side)
        for column in range(side):
            x, fx = _place(part[1], part[3], column, side)
            top = grey[y, x] + (grey[y, x + 1] - grey[y, x]) * fx
            low = grey[y + 1, x] + (grey[y + 1, x + 1] - grey[y + 1, x]) * fx
            error = crop[row, column] - (top + (low - top) * fy)
            total += error * error
    return float(total / (side * side))


@kernel
def _align(grey: Array, crop: Array, part: Array) -> float:
    """Move a part to where it differs least from the crop, in place; gives the mean square difference there."""
    best, trial = _misfit(grey, crop, part), part.copy()
    for _ in range(STEPS):
        trial[:] = part + _step(grey, crop, part)
        bottom, right = trial[0] + trial[2], trial[1] + trial[3]
        if min(trial[0], trial[1]) < -BEYOND or max(bottom, right) > 1 + BEYOND or min(trial[2], trial[3]) < SMALLEST:
            break
        misfit = _misfit(grey, crop, trial)
        if misfit >= best:
            break
        gain = best - misfit
        best = misfit
        part[:] = trial
        if gain < LEAST_GAIN * misfit:
            break
    return best


@kernel
def _step(grey: Array, crop: Array, part: Array) -> Array:
    """A step of Gauss-Newton for top, left, height and width, float64 (4,)."""
    side = len(grey)
    normal, gradient, slope = np.zeros((4, 4), np.float32), np.zeros(4, np.float32), np.empty(4, np.float32)
    for row in range(side):
        y, fy = _place(part[0], part[2], row, side)
        for column in range(side):
            x, fx = _place(part[1], part[3], column, side)
            across_top, across_low = grey[y, x + 1] - grey[y, x], grey[y + 1, x + 1] - grey[y + 1, x]
            top, low = grey[y, x] + across_top * fx, grey[y + 1, x] + across_low * fx
            error = crop[row, column] - (top + (low - top) * fy)
            slope[0] = (low - top) * side
            slope[1] = (across_top + (across_low - across_top) * fy) * side
            slope[2] = slope[0] * np.float32((row + 0.5) / side)
            slope[3] = slope[1] * np.float32((column + 0.5) / side)
            for i in range(4):
                gradient[i] += slope[i] * error
                for j in range(i + 1):
                    normal[i, j] += slope[i] * slope[j]
    damped = np.empty((4, 4))
    for i in range(4):
        for j in range(4):
            damped[i, j] = normal[max(i, j), min(i, j)]
    # Where nothing varies in a direction, there is no step in it.
    ridge = (damped[0, 0] + damped[1, 1]) * 1e-3 + 1e-6
    for i in range(4):
        damped[i, i] += ridge
    return np.linalg.solve(damped, gradient.astype(np.float64))
