"""What a picture looks like, in numbers that re-encoding and resizing hardly change: a thumbnail, and pHash.

pHash (Zauner, 2010; here with the formula of the package `imagehash`, `phash`) is the signs of a picture's lowest
frequencies, relative to their median. Frequencies near the median are a matter of chance: of a picture at hand, they
are known and may be left out when its hash is compared with one of which only the bits were kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from itertools import islice

import numpy as np
from PIL import Image, ImageFilter

from hpt_mlflow.augment.crop import resize
from hpt_mlflow.pixels import shown

# Raise it when thumbnails or hashes change.
VERSION = 1
# Of thumbnails, in pixels. Smaller ones do not tell playing cards apart.
SIDE = 48
# Frequencies per side: of those that find candidates, and of the hash, which has to tell radiographs apart by itself.
LOWEST, HASHED = 8, 16
# Pixels that are transformed per frequency that is kept, as in `imagehash`.
PIXELS_PER_FREQUENCY = 4
# ITU-R 601-2, as in Pillow.
GREY = np.array([0.299, 0.587, 0.114], np.float32)
BLUR = ImageFilter.Kernel((3, 3), (1, 2, 1, 2, 4, 2, 1, 2, 1))
# Pictures should be decoded with at least this shorter side.
DECODED_SIDE = 2 * SIDE
# Part of a picture: top, left, height and width as shares of its own.
Window = tuple[float, float, float, float]
WHOLE: Window = (0.0, 0.0, 1.0, 1.0)
# A mirrored picture has the same frequencies, the odd horizontal ones with the other sign.
MIRROR = np.tile(np.array([1, -1], np.float32), LOWEST * LOWEST // 2)
MIRROR_HASHED = np.tile(np.array([1, -1], np.float32), HASHED * HASHED // 2)
AT_ONCE = 1024


def thumbnail(image: np.ndarray) -> np.ndarray:
    """A picture, uint8 (height, width, 3), squashed to uint8 (`SIDE`, `SIDE`, 3) and slightly blurred.

    Blurred, versions of different sharpness look alike.
    """
    return np.asarray(resize(Image.fromarray(image), SIDE, SIDE).filter(BLUR))


def frequencies(thumbnails: np.ndarray, window: Window = WHOLE, lowest: int = LOWEST) -> np.ndarray:
    """The lowest frequencies of a part of each thumbnail in grey, by the type 2 DCT: float32 (N, lowest * lowest).

    Args:
        thumbnails: uint8 (N, `SIDE`, `SIDE`, 3).
    """
    top, left, height, width = window
    rows, columns = _basis(top, height, lowest), _basis(left, width, lowest)  # lowest x SIDE each
    found = np.empty((len(thumbnails), lowest * lowest), np.float32)
    for start in range(0, len(thumbnails), AT_ONCE):
        grey = thumbnails[start : start + AT_ONCE] @ GREY  # n x SIDE x SIDE
        found[start : start + AT_ONCE] = (rows @ grey @ columns.T).reshape(len(grey), -1)
    return found


def phash(found: np.ndarray) -> np.ndarray:
    """The hashes of pictures from F `frequencies`, uint64 (N, F / 64); the first bit is the highest of the first."""
    return _as_numbers(found > np.median(found, axis=1, keepdims=True))


def hashes_of(images: Iterable[np.ndarray]) -> np.ndarray:
    """The hashes of decoded images, of any depth and bands, as they are kept: uint64 (N, 4)."""
    hashes, rest = [np.empty((0, HASHED * HASHED // 64), np.uint64)], iter(images)
    while some := [thumbnail(shown(image)) for image in islice(rest, AT_ONCE)]:
        hashes.append(phash(frequencies(np.stack(some), lowest=HASHED)))
    return np.concatenate(hashes)


def certain_bits(found: np.ndarray, margin: float) -> np.ndarray:
    """Which bits of a hash another version of the picture has, too: uint64 (N, F / 64), 1 for certain.

    Args:
        found: `frequencies`.
        margin: least distance of a frequency from the median, in units of the root mean square of all but the first.
    """
    scale = np.sqrt((found[:, 1:] ** 2).mean(axis=1, keepdims=True))
    return _as_numbers(np.abs(found - np.median(found, axis=1, keepdims=True)) > margin * scale)


def directions(found: np.ndarray) -> np.ndarray:
    """Frequencies without the mean brightness, of length 1: float32 (N, 63); those of uniform pictures are 0."""
    varying = found[:, 1:]
    length = np.linalg.norm(varying, axis=1, keepdims=True)
    # A uniform picture has frequencies of rounding errors only.
    return np.where(length > 1.0, varying / np.maximum(length, 1.0), 0).astype(np.float32)


@cache
def _basis(start: float, length: float, lowest: int) -> np.ndarray:
    """From the pixels of a side to the lowest frequencies of a part of it, float32 (lowest, `SIDE`).

    The part is resampled to four pixels per frequency by a triangle filter, as Pillow does it.
    """
    count = PIXELS_PER_FREQUENCY * lowest
    step = length * SIDE / count
    centres = start * SIDE + (np.arange(count) + 0.5) * step
    weights = np.maximum(0, 1 - np.abs(np.arange(SIDE) + 0.5 - centres[:, None]) / max(step, 1.0))
    weights /= weights.sum(axis=1, keepdims=True)
    places = np.pi * (2 * np.arange(count) + 1) / (2 * count)
    transform = 2 * np.cos(np.arange(lowest)[:, None] * places)
    return (transform @ weights).astype(np.float32)


def _as_numbers(bits: np.ndarray) -> np.ndarray:
    """Bool (N, F) as uint64 (N, F / 64)."""
    return np.packbits(bits, axis=1).view(">u8").astype(np.uint64)
