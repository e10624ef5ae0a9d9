"""What a reader of a format returns, and the bounds that all of them keep."""

from __future__ import annotations

import io
import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from hpt_mlflow.data.errors import UnreadableImageError

# More pixels than any camera gives; Pillow's own bound against decompression bombs only warns below twice this.
MOST_PIXELS = 180_000_000
# Four per pixel, as Pillow holds them.
MOST_BYTES = 4 * MOST_PIXELS
# A video of an hour, or a volume of many scans; a header that claims more is damaged.
MOST_FRAMES = 100_000
# Bytes of an image with more channels than any sensor has bands are something else.
MOST_CHANNELS = 1024


class Numbers(NamedTuple):
    """An image in the numbers of its file.

    Attributes:
        values: (height, width) or (height, width, channels), of bool, uint8, uint16, int16, float32 or any other real
            type in the machine's byte order. Three channels of a photograph are red, green and blue.
        low, high: the range that the file itself declares, from black to white; values beyond it are shown as its ends.
            None if it declares none: the values then say nothing about their scale.
        nodata: the number that stands for pixels without a measurement; None if the file declares none.
    """

    values: np.ndarray
    low: float | None = None
    high: float | None = None
    nodata: float | None = None


class _Clipped(io.BufferedReader):
    """A file of which no more is asked than there is: Python makes room for what a damaged length says."""

    def __init__(self, file: Path, size: int) -> None:
        super().__init__(io.FileIO(file))
        self._size = size

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(0, self._size - self.tell())
        return super().read(left if size is None or size < 0 else min(size, left))


@contextmanager
def opened(file: Path | bytes, most_bytes: int = MOST_BYTES) -> Iterator[BinaryIO]:
    """A file, or its bytes, to read from.

    Raises:
        UnreadableImageError: it is not a regular file, or has more than `most_bytes`.
        OSError: it cannot be opened.
    """
    if isinstance(file, bytes):
        yield io.BytesIO(file)
        return
    status = os.stat(file)
    # Opening a FIFO would wait forever, and a device may not end.
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableImageError("it is not a regular file")
    if status.st_size > most_bytes:
        raise UnreadableImageError(f"{status.st_size} bytes are too many")
    with _Clipped(file, status.st_size) as stream:
        yield stream


def check_size(height: int, width: int, channels: int = 1, itemsize: int = 1) -> None:
    """Refuse an image, by what its header declares, before room is made for it.

    Raises:
        UnreadableImageError: it has no pixels, or more than `MOST_PIXELS`, `MOST_CHANNELS` or `MOST_BYTES`.
    """
    shown = f"{width} x {height}" + (f" x {channels}" if channels != 1 else "")
    if min(height, width, channels) < 1:
        raise UnreadableImageError(f"it has no pixels ({shown})")
    if height * width > MOST_PIXELS or channels > MOST_CHANNELS or height * width * channels * itemsize > MOST_BYTES:
        raise UnreadableImageError(f"{shown} pixels are too many; cut the image into tiles")


def check_frame(frame: int, frames: int) -> None:
    """Refuse an image that the file does not hold.

    Raises:
        UnreadableImageError: there is no such frame.
    """
    if not 0 <= frame < frames:
        raise UnreadableImageError(f"it has no image {frame}, only {frames}")


def checked_count(frames: int) -> int:
    """The number of images that a header declares.

    Raises:
        UnreadableImageError: it is negative, or more than `MOST_FRAMES`.
    """
    if not 0 <= frames <= MOST_FRAMES:
        raise UnreadableImageError(f"its header declares {frames} images")
    return frames


def scaled(values: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    """Values times slope plus intercept: integers of at most 32 bits where these are whole, or else float32."""
    if (slope, intercept) == (1, 0):
        return values
    if not (math.isfinite(slope) and math.isfinite(intercept)):
        raise UnreadableImageError(f"its numbers are rescaled by {slope:g} and {intercept:g}")
    whole = values.dtype.kind in "iub" and float(slope).is_integer() and float(intercept).is_integer()
    limits = np.array([values.min(), values.max()], np.float64) * slope + intercept
    if whole:
        for kind in (np.uint8, np.int16, np.uint16, np.int32):
            if np.iinfo(kind).min <= limits.min() and limits.max() <= np.iinfo(kind).max:
                return (values.astype(np.int64) * int(slope) + int(intercept)).astype(kind)
    return (values.astype(np.float64) * slope + intercept).astype(np.float32)
