"""The numbers in pictures: as they are in the file, of any depth and number of bands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from hpt_mlflow.data.errors import UnreadableImageError, explaining
from hpt_mlflow.data.formats.numbers import Numbers, check_size
from hpt_mlflow.data.pictures import (
    BYTES_PER_PIXEL,
    Encoded,
    Stack,
    checked_pixels,
    in_format,
    open_picture,
    read_format,
    turn,
    upright,
    upright_copy,
)
from hpt_mlflow.data.rgb import ROWS_AT_ONCE, grey_values, is_deep, is_inverted, to_rgb
from hpt_mlflow.errors import printable
from hpt_mlflow.pixels import PixelFormat

# Of grey and of colours, with or without transparency.
PLAIN_BANDS = (1, 2, 3, 4)


def is_plain(picture: Encoded) -> bool:
    """Whether a picture is grey or RGB of 8 bits, by its header.

    Raises:
        UnreadableImageError: it has none.
    """
    if isinstance(picture, np.ndarray):
        return picture.dtype == np.uint8 and (picture.ndim == 2 or picture.shape[2] in PLAIN_BANDS)
    if isinstance(picture, Stack):
        return False
    with explaining():
        if in_format(picture):
            return False
        with open_picture(picture) as image:
            return not is_deep(image)


def read_numbers(picture: Encoded) -> Numbers:
    """The numbers of a picture; those of 8-bit colours become RGB first, with a range from 0 to 255.

    Returns:
        (height, width, bands); where nothing was measured, they are not finite.

    Raises:
        UnreadableImageError: as `decode`.
    """
    if isinstance(picture, np.ndarray):
        return _of_array(picture)
    if isinstance(picture, Stack):
        return _of_stack(picture)
    with explaining():
        numbers = read_format(picture)
    if numbers is not None:
        return _of_format(numbers)
    with explaining(), open_picture(picture) as image, turn(BYTES_PER_PIXEL * checked_pixels(image)):
        turned = upright_copy(image) if image is picture else upright(image)
        if not is_deep(turned):
            return Numbers(np.asarray(to_rgb(turned)), 0, 255)
        return Numbers(_grey(turned)[:, :, None])


def _of_array(picture: np.ndarray) -> Numbers:
    if picture.ndim not in (2, 3) or not picture.size or picture.dtype.kind not in "buif":
        raise UnreadableImageError(f"an array of {picture.dtype} and shape {picture.shape} is not an image")
    values = picture[:, :, None] if picture.ndim == 2 else picture
    if values.dtype == bool:
        return Numbers(values.astype(np.uint8), 0, 1)
    return Numbers(values, 0, 255) if values.dtype == np.uint8 else Numbers(values)


def _of_format(found: Numbers) -> Numbers:
    numbers = _of_array(found.values)._replace(low=found.low, high=found.high)
    if found.nodata is None or not (missing := numbers.values == found.nodata).any():
        return numbers
    return numbers._replace(values=np.where(missing, np.float32(np.nan), numbers.values.astype(np.float32)))


def _of_stack(picture: Stack) -> Numbers:
    """The bands of several files; a range that all declare is declared, except that of 8 bits."""
    bands = []
    for file in picture.files:
        try:
            bands.append(read_numbers(file))
        except UnreadableImageError as error:
            raise UnreadableImageError(f"{printable(file.name)}: {error}") from error
    for file, band in zip(picture.files, bands, strict=True):
        # A grey file of 8 bits becomes RGB.
        if band.values.shape[2] != 1 and (band.values[:, :, :1] != band.values).any():
            raise UnreadableImageError(f"{printable(file.name)} has {band.values.shape[2]} channels, not one")
        if band.values.shape[:2] != bands[0].values.shape[:2]:
            one, other = (" x ".join(map(str, each.values.shape[1::-1])) for each in (bands[0], band))
            raise UnreadableImageError(
                f"{printable(picture.files[0].name)} has {one} pixels, {printable(file.name)} {other}; resample them "
                "to one grid"
            )
    height, width = bands[0].values.shape[:2]
    check_size(height, width, len(bands), np.result_type(*(band.values for band in bands)).itemsize)
    ranges = {(band.low, band.high) for band in bands}
    low, high = ranges.pop() if len(ranges) == 1 else (None, None)
    return Numbers(np.concatenate([band.values[:, :, :1] for band in bands], axis=2), low, high)


def _grey(image: Image.Image) -> np.ndarray:
    """The numbers of a deep picture, (height, width), from black to white."""
    values = grey_values(image)
    highest = np.iinfo(values.dtype).max if values.dtype.kind in "iu" else values.max()
    if is_inverted(image):
        values = highest - values
    if "transparency" in image.info:
        values = np.where(grey_values(image) == image.info["transparency"], values.max(), values)
    return values


def to_pixels(numbers: Numbers, pixels: PixelFormat) -> np.ndarray:
    """Choose bands and scale.

    Returns:
        uint8 or uint16 (height, width, channels). Numbers that are not finite, where nothing was measured, are black.

    Raises:
        UnreadableImageError: it lacks bands, is deep where most pictures are not, or has no finite number.
    """
    chosen = _choose_bands(numbers.values, pixels.bands)
    if not pixels.low:
        if chosen.dtype != np.uint8:
            raise UnreadableImageError(f"it has numbers of type {chosen.dtype}, where most images have 8 bits")
        scaled = chosen
    elif numbers.low is not None and numbers.high is not None:
        scaled = scale(chosen, [numbers.low], [numbers.high], pixels.dtype)
    else:
        scaled = scale(chosen, pixels.low, pixels.high, pixels.dtype)
    return scaled if scaled.shape[2] == pixels.channels else np.repeat(scaled, pixels.channels, axis=2)


def _choose_bands(values: np.ndarray, bands: Sequence[int]) -> np.ndarray:
    found = values.shape[2]
    if not bands:
        if found not in (1, 3):
            raise UnreadableImageError(f"it has {found} bands, where most images are grey or RGB")
        return values
    if found < max(bands):
        raise UnreadableImageError(f"it has no band {max(bands)}, only {found}")
    if list(bands) == list(range(1, found + 1)):
        return values
    return np.ascontiguousarray(values[:, :, np.array(bands) - 1])


def scale(values: np.ndarray, low: Sequence[float], high: Sequence[float], dtype: np.dtype[Any]) -> np.ndarray:
    """From `low` and `high`, for all or each of the bands, to black and the largest number of a type.

    Args:
        values: (height, width, bands). Those that are not finite become black.

    Raises:
        UnreadableImageError: none is finite.
    """
    highest = np.iinfo(dtype).max
    # Grey has the range of all three channels.
    count = min(len(low), values.shape[2])
    black, white = np.array(low[:count], np.float64), np.array(high[:count], np.float64)
    factor = highest / (white - black)
    scaled = np.empty(values.shape, dtype)
    any_finite = values.dtype.kind != "f"
    # Scaling everything at once would take eight times the memory.
    for start in range(0, len(values), ROWS_AT_ONCE):
        rows = (values[start : start + ROWS_AT_ONCE] - black) * factor
        if values.dtype.kind == "f":
            finite = np.isfinite(rows)
            any_finite |= bool(finite.any())
            rows[~finite] = 0
        scaled[start : start + ROWS_AT_ONCE] = np.clip(rows, 0, highest) + 0.5
    if not any_finite:
        raise UnreadableImageError("it has no finite number")
    return scaled
