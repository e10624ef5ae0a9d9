"""Opening pictures with Pillow: which files are pictures, and how large they may be."""

from __future__ import annotations

import io
import os
import stat
import threading
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from hpt_mlflow.data.errors import UnreadableImageError
from hpt_mlflow.data.formats import registry
from hpt_mlflow.data.formats.numbers import MOST_BYTES, MOST_PIXELS, Numbers


class Frame(NamedTuple):
    """One of several images in a file.

    Attributes:
        number: from 0 on.
    """

    file: Path
    number: int


class Stack(NamedTuple):
    """An image whose bands are files of their own, in this order."""

    files: tuple[Path, ...]


# A picture as a dataset may hold it.
Encoded = Path | Frame | Stack | bytes | np.ndarray | Image.Image

# Files with these suffixes count as pictures.
SUFFIXES = ".avif .bmp .dib .gif .j2k .jfif .jp2 .jpe .jpeg .jpg .pbm .pcx .pgm .png .pnm .ppm .tga .tif .tiff .webp"
IMAGE_SUFFIXES = frozenset(SUFFIXES.split())
# The formats of these suffixes, and no others: for EPS, whatever the file is called, Pillow would run Ghostscript.
FORMATS = sorted({kind for suffix, kind in Image.registered_extensions().items() if suffix in IMAGE_SUFFIXES})
# What Pillow holds per pixel, so the largest picture takes `MOST_BYTES`.
BYTES_PER_PIXEL = MOST_BYTES // MOST_PIXELS
# Pictures and files above this size are decoded one at a time.
LARGE_BYTES = 1 << 26
TIFF_TILE_WIDTH, TIFF_TILE_HEIGHT = 322, 323

# Large pictures are held in such blocks, which glibc frees at once; each thread would keep Pillow's 16 MiB.
BLOCK_BYTES = 1 << 26


def has_image_suffix(name: str) -> bool:
    """Whether a path ends as those of pictures do; arrays are not meant, as they may hold anything."""
    suffix = registry.suffix_of(name)
    return suffix in IMAGE_SUFFIXES or (suffix in registry.suffixes() and suffix != ".npy")


def open_picture(picture: Encoded) -> AbstractContextManager[Image.Image]:
    """Open a picture without decoding it; an array must be uint8.

    Raises:
        UnreadableImageError: it is a file of more than `MOST_BYTES`, or not a regular file.
        Exception: whatever Pillow raises; see `explaining`.
    """
    _prepare_pillow()
    if isinstance(picture, Image.Image):
        return nullcontext(picture)
    if isinstance(picture, bytes):
        return Image.open(io.BytesIO(picture), formats=FORMATS)
    if isinstance(picture, np.ndarray):
        return Image.fromarray(picture[:, :, 0] if picture.shape[2:] == (1,) else picture)
    if isinstance(picture, Frame):
        return _open_page(picture)
    if isinstance(picture, Stack):
        raise UnreadableImageError("it is in several files")
    status = os.stat(picture)
    # Opening a FIFO would wait forever, and a device may not end.
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableImageError("it is not a regular file")
    if status.st_size > MOST_BYTES:
        raise UnreadableImageError(f"{status.st_size} bytes are too many")
    # Opening reads the whole file in some formats.
    with turn(status.st_size):
        return Image.open(picture, formats=FORMATS)


def _open_page(frame: Frame) -> Image.Image:
    """A page of a TIFF: all other files of several images are read by `formats`."""
    from hpt_mlflow.data.formats.tiff import page_of

    image = open_picture(frame.file)
    assert isinstance(image, Image.Image)
    image.seek(page_of(frame.file, frame.number))
    return image


def in_format(picture: Encoded) -> bool:
    """Whether a picture has a format that is read by `formats`, as Pillow does not open it or leaves out bits or bands.

    Raises:
        UnreadableImageError: it is not a regular file, or a whole slide.
        OSError: it cannot be opened.
    """
    return _file_in_format(picture) is not None


def read_format(picture: Encoded) -> Numbers | None:
    """The picture in the numbers of its file, if it is `in_format`.

    Raises:
        UnreadableImageError: it cannot be read, or holds several images of which none is named.
        Exception: see `explaining`.
    """
    file = _file_in_format(picture)
    if file is None:
        return None
    if not isinstance(picture, Frame) and (count := registry.frames(file)) > 1:
        raise UnreadableImageError(f"it holds {count} images; put it into a folder, where each is one of the dataset")
    with turn(len(file) if isinstance(file, bytes) else os.stat(file).st_size):
        return registry.read(file, picture.number if isinstance(picture, Frame) else 0)


def pillow_opens(picture: Encoded) -> bool:
    """Whether Pillow opens a picture, if with fewer bits or bands."""
    try:
        with open_picture(picture):
            return True
    except Exception:  # it raises almost anything for what it does not know
        return False


def _file_in_format(picture: Encoded) -> Path | bytes | None:
    if isinstance(picture, Image.Image | np.ndarray | Stack):
        return None
    file = picture.file if isinstance(picture, Frame) else picture
    return file if registry.format_of(file) is not None else None


@cache
def _prepare_pillow() -> None:
    """Set up Pillow for this process, when it first decodes."""
    # Pillow warns of sizes that are allowed here, and of oddities without saying in which file.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    Image.core.set_block_size(BLOCK_BYTES)


class TurnLock:
    """A lock for threads. A forked process starts with a free one: it lacks the threads that may have held it."""

    def __init__(self) -> None:
        self._renew()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()


_turn_of_large = TurnLock()


def turn(size: int) -> AbstractContextManager[None]:
    """Let one thread at a time decode what takes more than `LARGE_BYTES`: together they would fill the memory."""
    return _turn_of_large if size > LARGE_BYTES else nullcontext()


def checked_pixels(image: Image.Image) -> int:
    """How many pixels decoding takes: a single tile of a TIFF may be far larger than the picture."""
    pixels = image.width * image.height
    if not pixels:
        raise UnreadableImageError("it has no pixels")
    tags = tags_of(image)
    tile_width, tile_height = tags.get(TIFF_TILE_WIDTH, 0), tags.get(TIFF_TILE_HEIGHT, 0)
    if max(pixels, tile_width * tile_height) > MOST_PIXELS:
        tiles = f" in tiles of {tile_width} x {tile_height}" if tile_width else ""
        raise UnreadableImageError(f"{image.width} x {image.height} pixels{tiles} are too many")
    return max(pixels, tile_width * tile_height)


def tags_of(image: Image.Image) -> Mapping[int, Any]:
    """The tags of a TIFF; empty for other formats."""
    return getattr(image, "tag_v2", {})


def upright(image: Image.Image) -> Image.Image:
    """Turned in place as its EXIF data says; damaged metadata leaves a picture readable."""
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except (SyntaxError, ValueError, TypeError, KeyError, OSError):
        image.load()
    return image


def upright_copy(image: Image.Image) -> Image.Image:
    """A copy of a caller's open image that keeps what its file's header said; Pillow's own copy does not."""
    copied = upright(image.copy())
    copied.format = image.format
    copied.tag_v2 = tags_of(image)  # type: ignore[attr-defined]
    return copied
