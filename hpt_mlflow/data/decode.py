"""From any file that Pillow opens to RGB, the way a person would expect to see it."""

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
from typing import Any

import numpy as np
import PIL
from PIL import Image, ImageOps

from hpt_mlflow.augment.crop import resize
from hpt_mlflow.data.errors import UnreadableImageError, explaining

# Version of how pictures become RGB here; raise it with any change.
CONVERSION = 4
# A picture as a dataset may hold it.
Encoded = Path | bytes | np.ndarray | Image.Image

# Files with these suffixes count as pictures.
SUFFIXES = ".avif .bmp .dib .gif .j2k .jfif .jp2 .jpe .jpeg .jpg .pbm .pcx .pgm .png .pnm .ppm .tga .tif .tiff .webp"
IMAGE_SUFFIXES = frozenset(SUFFIXES.split())
# The formats of these suffixes, and no others: for EPS, whatever the file is called, Pillow would run Ghostscript.
FORMATS = sorted({kind for suffix, kind in Image.registered_extensions().items() if suffix in IMAGE_SUFFIXES})
# More pixels than any camera gives; Pillow's own bound against decompression bombs only warns below twice this.
MOST_PIXELS = 180_000_000
# What Pillow holds per pixel, so the largest picture takes `MOST_BYTES`.
BYTES_PER_PIXEL = 4
MOST_BYTES = BYTES_PER_PIXEL * MOST_PIXELS
# Pictures and files above this size are decoded one at a time.
LARGE_BYTES = 1 << 26
TIFF_BITS, TIFF_PHOTOMETRIC, TIFF_TILE_WIDTH, TIFF_TILE_HEIGHT = 258, 262, 322, 323
TIFF_EXTRA_SAMPLES, TIFF_SAMPLE_FORMAT = 338, 339
MIN_IS_WHITE, UNSIGNED, SIGNED = 0, 1, 2
# Formats whose fourth channel programs often leave at zero without meaning transparency.
UNFILLED_ALPHA = frozenset(["TGA", "BMP", "DIB"])
# Squares of the smallest side that are kept of a strip: longer ones would fill the memory with what no crop shows.
LONGEST_STRIP = 64
ROWS_AT_ONCE = 64

# Large pictures are held in such blocks, which glibc frees at once; each thread would keep Pillow's 16 MiB.
BLOCK_BYTES = 1 << 26


def has_image_suffix(name: str) -> bool:
    """Whether a path ends as those of pictures do."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def conversion() -> str:
    """What decides which pixels a file becomes; cached pixels are valid for the same conversion only."""
    return f"{CONVERSION}-{PIL.__version__}"


def decode(picture: Encoded, smallest_side: int | None = None) -> np.ndarray:
    """Decode a picture to RGB.

    Args:
        picture: a file, its bytes, an array (height, width) or (height, width, 1, 3 or 4) of uint8 or uint16, or an
            open Pillow image.
        smallest_side: reduce the picture so that its shorter side has at most this many pixels; of a very long strip,
            keep the middle.

    Returns:
        uint8 (height, width, 3).

    Raises:
        UnreadableImageError: it is not a picture, is damaged, has more than `MOST_PIXELS` pixels, or is a file of more
            than `MOST_BYTES` or not a regular file.
    """
    with explaining(), _open(picture) as image, _turn(BYTES_PER_PIXEL * _checked_pixels(image)):
        if smallest_side and image.format == "JPEG" and image is not picture:
            image.draft(None, (smallest_side, smallest_side))
        upright = _upright_copy(image) if image is picture else _upright(image)
        return np.asarray(_reduce(to_rgb(upright), smallest_side))


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB: transparency over white, deep grey scaled to 8 bits, everything else as Pillow converts it."""
    if _is_deep(image):
        values = _values(image)
        shown = to_8_bits(values)
        # Pillow turns such pictures of 8 bits only.
        if _tags(image).get(TIFF_PHOTOMETRIC) == MIN_IS_WHITE:
            shown = 255 - shown
        if "transparency" in image.info:
            shown = np.where(values == image.info["transparency"], np.uint8(255), shown)
        return Image.fromarray(shown).convert("RGB")
    if image.has_transparency_data:
        coloured = _in_mode("RGBA", image)
        if not _has_unused_alpha(image, coloured.getchannel("A")):
            background = Image.new("RGB", image.size, "white")
            background.paste(coloured, mask=coloured)
            return background
    return _in_mode("RGB", image)


def deep_values(picture: Encoded) -> np.ndarray | None:
    """The numbers of a picture that are scaled to 8 bits; None if its header says that it has 8.

    Of 16-bit colours in a file, Pillow keeps the upper 8 bits, which are returned as uint16.

    Raises:
        UnreadableImageError: as `decode`.
    """
    if isinstance(picture, np.ndarray):
        return None if picture.dtype == np.uint8 else picture
    with explaining(), _open(picture) as image:
        halved = _has_halved_colours(image)
        if not _is_deep(image) and not halved:
            return None
        with _turn(BYTES_PER_PIXEL * _checked_pixels(image)):
            return np.asarray(image).astype(np.uint16) * 257 if halved else _values(image)


def _values(image: Image.Image) -> np.ndarray:
    """The numbers of a deep picture; Pillow knows only signed 32 bits and unsigned 8 bits."""
    values = np.asarray(image)
    # Pillow scales those of a PGM to 16 bits, and keeps them in 32.
    if image.format == "PPM" and values.dtype == np.int32:
        return values.astype(np.uint16)
    tags = _tags(image)
    unsigned = tags.get(TIFF_BITS) == (32,) and tags.get(TIFF_SAMPLE_FORMAT, (UNSIGNED,)) == (UNSIGNED,)
    if values.dtype == np.int32 and unsigned:
        return values.view(np.uint32)
    return values.view(np.int8) if values.dtype == np.uint8 else values


def _is_deep(image: Image.Image) -> bool:
    """Whether the numbers of a grey picture are not those of 8 bits from black to white."""
    return image.mode.startswith(("I", "F")) or (
        image.mode == "L" and _tags(image).get(TIFF_SAMPLE_FORMAT) == (SIGNED,)
    )


def _has_halved_colours(image: Image.Image) -> bool:
    """Whether a file has colours of 16 bits, of which Pillow reads the upper 8."""
    tiles: list[Any] = getattr(image, "tile", [])
    return image.format in ("PNG", "TIFF") and not _is_deep(image) and any(";16" in str(tile[3]) for tile in tiles)


def _tags(image: Image.Image) -> Mapping[int, Any]:
    """The tags of a TIFF; empty for other formats."""
    return getattr(image, "tag_v2", {})


def _has_unused_alpha(image: Image.Image, alpha: Image.Image) -> bool:
    """Whether a picture's alpha, from its last channel or its palette, does not mean transparency.

    It is unused if it is zero throughout, in a format that often leaves it unfilled or in a TIFF that does not explain
    it. A PNG or WebP that is transparent throughout is meant so: white.
    """
    unexplained = image.format == "TIFF" and TIFF_EXTRA_SAMPLES not in _tags(image)
    return (image.format in UNFILLED_ALPHA or unexplained) and alpha.getbbox() is None


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


def _turn(size: int) -> AbstractContextManager[None]:
    """Let one thread at a time decode what takes more than `LARGE_BYTES`: together they would fill the memory."""
    return _turn_of_large if size > LARGE_BYTES else nullcontext()


@cache
def _prepare_pillow() -> None:
    """Set up Pillow for this process, when it first decodes."""
    # Pillow warns of sizes that are allowed here, and of oddities without saying in which file.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    Image.core.set_block_size(BLOCK_BYTES)


def _open(picture: Encoded) -> AbstractContextManager[Image.Image]:
    _prepare_pillow()
    if isinstance(picture, Image.Image):
        return nullcontext(picture)
    if isinstance(picture, bytes):
        return Image.open(io.BytesIO(picture), formats=FORMATS)
    if isinstance(picture, np.ndarray):
        if picture.ndim == 3 and picture.shape[2] == 1:
            picture = picture[:, :, 0]
        return Image.fromarray(picture if picture.dtype == np.uint8 else to_8_bits(picture))
    status = os.stat(picture)
    # Opening a FIFO would wait forever, and a device may not end.
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableImageError("it is not a regular file")
    if status.st_size > MOST_BYTES:
        raise UnreadableImageError(f"{status.st_size} bytes are too many")
    # Opening reads the whole file in some formats.
    with _turn(status.st_size):
        return Image.open(picture, formats=FORMATS)


def _checked_pixels(image: Image.Image) -> int:
    """How many pixels decoding takes: a single tile of a TIFF may be far larger than the picture."""
    pixels = image.width * image.height
    if not pixels:
        raise UnreadableImageError("it has no pixels")
    tags = _tags(image)
    tile_width, tile_height = tags.get(TIFF_TILE_WIDTH, 0), tags.get(TIFF_TILE_HEIGHT, 0)
    if max(pixels, tile_width * tile_height) > MOST_PIXELS:
        tiles = f" in tiles of {tile_width} x {tile_height}" if tile_width else ""
        raise UnreadableImageError(f"{image.width} x {image.height} pixels{tiles} are too many")
    return max(pixels, tile_width * tile_height)


def _in_mode(mode: str, image: Image.Image) -> Image.Image:
    """Converted, but not copied if it already has the mode."""
    return image if image.mode == mode else image.convert(mode)


def _upright(image: Image.Image) -> Image.Image:
    """Turned in place as its EXIF data says; damaged metadata leaves a picture readable."""
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except (SyntaxError, ValueError, TypeError, KeyError, OSError):
        image.load()
    return image


def _upright_copy(image: Image.Image) -> Image.Image:
    """A copy of a caller's open image that keeps what its file's header said; Pillow's own copy does not."""
    copied = _upright(image.copy())
    copied.format = image.format
    copied.tag_v2 = _tags(image)  # type: ignore[attr-defined]
    return copied


def to_8_bits(values: np.ndarray) -> np.ndarray:
    """Scale to uint8 from the range that the numbers suggest: bool, 16 bits, [0, 1], 8 bits, or their own extremes."""
    if values.dtype == bool:
        return values.astype(np.uint8) * 255
    low, high = float(values.min(initial=0)), float(values.max(initial=0))
    if not np.isfinite(high - low):
        raise UnreadableImageError("it has numbers that are not finite")
    shown = np.empty(values.shape, np.uint8)
    # Differences of numbers far apart or close together do not fit into 32 bits, let alone 16.
    is_coarse = values.dtype.kind == "f" and (values.dtype.itemsize == 2 or not 1e-30 < high - low < 1e30)
    # Scaling everything at once would take eight times the memory.
    for start in range(0, len(values), ROWS_AT_ONCE):
        rows = values[start : start + ROWS_AT_ONCE]
        if low < 0 or high > 65535:
            rows = ((rows.astype(np.float64) if is_coarse else rows) - low) * (255 / (high - low))
        elif (values.dtype.kind == "u" and values.dtype.itemsize == 2) or high > 255:
            rows = rows / 257
        elif values.dtype.kind == "f" and high <= 1:
            rows = rows * 255.0
        shown[start : start + ROWS_AT_ONCE] = np.round(rows)
    return shown


def _reduce(image: Image.Image, smallest_side: int | None) -> Image.Image:
    shorter = min(image.size)
    if not smallest_side:
        return image
    kept = min(shorter, smallest_side)
    longest = LONGEST_STRIP * smallest_side**2 * shorter // kept**2
    left, top = max(0, image.width - longest) // 2, max(0, image.height - longest) // 2
    if left or top:
        image = image.crop((left, top, image.width - left, image.height - top))
    if shorter <= smallest_side:
        return image
    scale = smallest_side / shorter
    width, height = (max(smallest_side, round(length * scale)) for length in image.size)
    return resize(image, width, height)
