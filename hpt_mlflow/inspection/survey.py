"""One look at every image of a dataset: its size, mode and depth, its thumbnail, and whether it shows anything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from hpt_mlflow.data.dataset import Dataset
from hpt_mlflow.data.decode import decode
from hpt_mlflow.data.errors import UnreadableImageError, explaining
from hpt_mlflow.data.formats import registry
from hpt_mlflow.data.numbers import read_numbers
from hpt_mlflow.data.perceptual import DECODED_SIDE, thumbnail
from hpt_mlflow.data.pictures import Encoded, Frame, Stack, in_format, open_picture, pillow_opens
from hpt_mlflow.data.pixel_range import pixels_of
from hpt_mlflow.data.split import Split
from hpt_mlflow.pixels import PixelFormat, shown

# A thumbnail whose channels vary less than this many of 255 levels (standard deviation) shows nothing.
BLANK_LEVELS = 2.0
# A picture is saturated if this share of its pixels lies within this many levels of black or white.
SATURATED_SHARE, SATURATED_LEVELS = 0.95, 2
BITS = {"1": 1, "I": 32, "F": 32, "I;16": 16, "I;16B": 16, "I;16L": 16}
TIFF_BITS = 258
IMAGES_AT_ONCE = 1024


class Look(NamedTuple):
    """What is noted of a readable image.

    Attributes:
        kind: format, mode and bits per channel in words.
        clipped: share of pixels that are black or white.
    """

    width: int
    height: int
    kind: str
    clipped: float
    small: np.ndarray


@dataclass(frozen=True)
class Survey:
    """A dataset, and what was seen of its N images.

    Attributes:
        pixels: what they are decoded to.
        first: place of its first image in the table of thumbnails of all datasets.
        sizes: int32 (N, 2), width and height in the file; 0 for unreadable ones.
        kinds: how many images there are of each kind, such as `JPEG RGB 8 bits`.
        blank, saturated: int64, indices of images that show nothing, and of those that are nearly all black or white.
        unreadable: reason by index.
    """

    dataset: Dataset
    split: Split
    pixels: PixelFormat
    first: int
    sizes: np.ndarray
    kinds: Counter[str]
    blank: np.ndarray
    saturated: np.ndarray
    unreadable: dict[int, str]

    @property
    def readable(self) -> np.ndarray:
        """Indices of the images that could be read, int64."""
        return np.flatnonzero(self.sizes[:, 0] > 0)

    @property
    def shown(self) -> np.ndarray:
        """Indices of the readable images that are not blank, int64."""
        return np.setdiff1d(self.readable, self.blank)


def survey(
    dataset: Dataset,
    split: Split,
    thumbnails: np.ndarray,
    first: int,
    threads: int | None,
    on_step: Callable[[int, int], None],
) -> Survey:
    """Look at every image once.

    Args:
        thumbnails: uint8 (M, S, S, 3), of all datasets; those of this one are written from `first` on.
        threads: that decode; None for one per processor.
        on_step: called with the number of images that are done, and of all.
    """
    count = len(dataset)
    sizes, clipped = np.zeros((count, 2), np.int32), np.zeros(count, np.float32)
    spread, kinds, unreadable = np.zeros(count, np.float32), Counter[str](), dict[int, str]()
    pixels = pixels_of(dataset)
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, count, IMAGES_AT_ONCE):
            some = range(start, min(start + IMAGES_AT_ONCE, count))
            for index, look in zip(some, pool.map(lambda i: _look(dataset, i, pixels), some), strict=True):
                if isinstance(look, str):
                    unreadable[index] = look
                    continue
                sizes[index], clipped[index] = (look.width, look.height), look.clipped
                kinds[look.kind] += 1
                thumbnails[first + index] = look.small
                spread[index] = look.small.std(axis=(0, 1)).max()
            on_step(some.stop, count)
    readable = sizes[:, 0] > 0
    blank = readable & (spread < BLANK_LEVELS)
    saturated = readable & ~blank & (clipped >= SATURATED_SHARE)
    return Survey(
        dataset, split, pixels, first, sizes, kinds, np.flatnonzero(blank), np.flatnonzero(saturated), unreadable
    )


def _look(dataset: Dataset, index: int, pixels: PixelFormat) -> Look | str:
    """An image, or why it cannot be read."""
    try:
        picture = dataset.pictures[index]
        image = shown(decode(picture, DECODED_SIDE, pixels))
        width, height, kind = _header(picture)
    except UnreadableImageError as error:
        return str(error)
    white = (image >= 255 - SATURATED_LEVELS).all(axis=2)
    black = (image <= SATURATED_LEVELS).all(axis=2)
    return Look(width, height, kind, float(white.mean() + black.mean()), thumbnail(image))


def _header(picture: Encoded) -> tuple[int, int, str]:
    """Width, height and kind of a picture."""
    if isinstance(picture, Image.Image):
        return picture.width, picture.height, _kind(picture)
    if not isinstance(picture, np.ndarray | Stack) and (not in_format(picture) or pillow_opens(picture)):
        with explaining(), open_picture(picture) as image:
            return image.width, image.height, _kind(image)
    values = read_numbers(picture).values
    if isinstance(picture, np.ndarray | Stack):
        name = "array" if isinstance(picture, np.ndarray) else "files of single bands,"
    else:
        name = str(registry.format_of(picture.file if isinstance(picture, Frame) else picture))
    return values.shape[1], values.shape[0], f"{name} {values.dtype}, {_plural(values.shape[2], 'band')}"


def _kind(image: Image.Image) -> str:
    bits = BITS.get(image.mode, 8)
    tags = getattr(image, "tag_v2", {})
    if TIFF_BITS in tags:
        bits = max(tags[TIFF_BITS])
    elif any(";16" in str(tile[3]) for tile in getattr(image, "tile", [])):
        bits = 16
    return f"{image.format or 'in memory'} {image.mode} {_plural(bits, 'bit')}"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
