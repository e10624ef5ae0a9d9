"""TIFF, BigTIFF and GeoTIFF in full depth and with all bands, by tifffile. Pillow reads plain ones of 8 bits, as ever.

TIFF 6.0 (Adobe 1992); GeoTIFF 1.1 (OGC 19-008r4). GDAL's tag for missing data: https://gdal.org/drivers/raster/gtiff
"""

from __future__ import annotations

import logging
import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from hpt_mlflow.data.errors import UnreadableImageError
from hpt_mlflow.data.formats.codestream import check_codestream
from hpt_mlflow.data.formats.numbers import MOST_FRAMES, Numbers, check_frame, check_size, opened
from hpt_mlflow.errors import printable

BITS, PHOTOMETRIC, SAMPLES = 258, 262, 277
MIN_SAMPLE, MAX_SAMPLE, EXTRA_SAMPLES, SAMPLE_FORMAT = 280, 281, 338, 339
STRIP_OFFSETS, STRIP_COUNTS, TILE_OFFSETS, TILE_COUNTS = 273, 279, 324, 325
S_MIN_SAMPLE, S_MAX_SAMPLE, GDAL_NODATA = 340, 341, 42113
MIN_IS_WHITE = 0
# Of samples beyond those of the colours: a band, or alpha, already multiplied or not.
BAND, ALPHAS = 0, (1, 2)
# Nothing, LZW, deflate, PackBits, LZMA and zstd inflate into the room of a segment, and no further.
PLAIN, BYTES = 1, frozenset([5, 8, 32946, 32773, 34925, 50000])
# JPEG and JPEG 2000 say themselves how large they are.
PICTURES = frozenset([7, 33003, 33004, 33005, 34712])
# Reduced copies, such as thumbnails and overviews, and masks of transparency (NewSubfileType).
REDUCED, MASK = 1, 4


def is_ours(file: Path | bytes) -> bool:
    """Whether Pillow cannot open it, or would leave out bits or bands."""
    _prepare()
    with opened(file) as stream:
        try:
            with Image.open(stream, formats=["TIFF"]) as image:
                tags: Any = image.tag_v2  # type: ignore[attr-defined]
        except Exception:  # Pillow raises almost anything for what it does not know
            return True
    extra = tags.get(EXTRA_SAMPLES, ())
    is_deep = max(tags.get(BITS, (1,))) > 8 or max(tags.get(SAMPLE_FORMAT, (1,))) > 1
    return is_deep or BAND in (extra if isinstance(extra, tuple) else (extra,))


def frames(file: Path | bytes) -> int:
    """How many pages it has, without thumbnails, overviews and masks; 1 if there are no others."""
    with opened(file) as stream:
        # Most files have one page, and to see that takes a hundredth of the time.
        if not _has_several_pages(stream):
            return 1
        stream.seek(0)
        with _tiff(stream) as tiff:
            return max(1, len(_pages(tiff)))


def page_of(file: Path | bytes, frame: int) -> int:
    """The number of the page that is this image, thumbnails and masks included, as Pillow counts.

    Raises:
        UnreadableImageError: there is no such image.
    """
    with opened(file) as stream, _tiff(stream) as tiff:
        pages = _pages(tiff)
        check_frame(frame, len(pages))
        return int(pages[frame].index)


def read(file: Path | bytes, frame: int) -> Numbers:
    """A page, (height, width) or (height, width, bands), with the bands in the order of the file.

    - `low` and `high` are MinSampleValue and MaxSampleValue, or SMin- and SMaxSampleValue, if the file has both, or the
      ends of fewer than 16 bits, such as 12.
    - `nodata` is GDAL's. Grey from white to black is inverted between `low` and `high`, or the ends of its type.
    - Transparency, which is a sample that the file calls alpha, is left out.
    """
    with opened(file) as stream, _tiff(stream) as tiff:
        pages = _pages(tiff)
        check_frame(frame, len(pages))
        page = pages[frame]
        _check(page)
        values = page.asarray(maxworkers=1)
        values = _bands_last(values, page)
        low, high = _declared_range(page, values.dtype)
        if page.tags.valueof(PHOTOMETRIC) == MIN_IS_WHITE and values.ndim == 2:
            values, low, high = _inverted(values, low, high)
        return Numbers(np.ascontiguousarray(values), low, high, _nodata(page))


def _has_several_pages(stream: BinaryIO) -> bool:
    """Whether the first directory of tags names a next one (TIFF 6.0, section 2; BigTIFF)."""
    start = stream.read(16)
    order = "<" if start[:2] == b"II" else ">"
    is_big = start[2:4] in (b"+\0", b"\0+")
    offset, number, entry = ("Q", "Q", 20) if is_big else ("I", "H", 12)
    (first,) = struct.unpack_from(order + offset, start, 8 if is_big else 4)
    stream.seek(first)
    (tags,) = struct.unpack(order + number, stream.read(struct.calcsize(number)))
    stream.seek(first + struct.calcsize(number) + entry * tags)
    return bool(stream.read(struct.calcsize(offset)).strip(b"\0"))


@contextmanager
def _tiff(stream: BinaryIO) -> Iterator[Any]:
    import tifffile

    _prepare()
    with tifffile.TiffFile(stream) as tiff:
        yield tiff


def _pages(tiff: Any) -> list[Any]:
    """The pages that are pictures."""
    pages: list[Any] = []
    seen: set[int] = set()
    for page in tiff.pages:
        page = page.aspage()
        if page.offset in seen or len(seen) >= MOST_FRAMES:
            raise UnreadableImageError(f"it is damaged: its pages go round in a circle, or are over {MOST_FRAMES}")
        seen.add(page.offset)
        if not page.subfiletype & (REDUCED | MASK):
            pages.append(page)
    return pages


def _check(page: Any) -> None:
    """Refuse what would take too much memory, or cannot be decoded here, before it is tried."""
    if page.dtype is None or page.dtype.kind not in "biuf":
        raise UnreadableImageError(f"{page.bitspersample} bits of the format {page.sampleformat!s} are not pixels")
    if page.imagedepth != 1:
        raise UnreadableImageError(f"it is a volume of the depth {page.imagedepth}; save its slices as pages")
    check_size(page.imagelength, page.imagewidth, page.samplesperpixel, page.dtype.itemsize)
    if page.is_tiled:
        # A single tile may be far larger than the picture.
        check_size(page.tilelength, page.tilewidth, page.samplesperpixel, page.dtype.itemsize)
    # tifffile makes up for strips that are not there, and would look for millions of them.
    wanted = math.prod(page.chunked)
    for tag in (TILE_OFFSETS, TILE_COUNTS) if page.is_tiled else (STRIP_OFFSETS, STRIP_COUNTS):
        present = page.tags[tag].count if tag in page.tags else 0
        if present < wanted:
            raise UnreadableImageError(f"it is damaged: it has {present} strips or tiles of {wanted}")
    if page.compression == PLAIN:
        return
    _check_codec(page)
    if page.compression in PICTURES:
        height, width = (
            (page.tilelength, page.tilewidth)
            if page.is_tiled
            else (min(page.rowsperstrip, page.imagelength), page.imagewidth)
        )
        strips = -(-page.imagelength // height) if not page.is_tiled else 0
        for number, (data, _) in enumerate(page.parent.filehandle.read_segments(page.dataoffsets, page.databytecounts)):
            last = strips and number % strips == strips - 1
            rows = page.imagelength - (strips - 1) * height if last else height
            if data:
                check_codestream(data, rows, width)


def _check_codec(page: Any) -> None:
    name = printable(str(getattr(page.compression, "name", page.compression)))
    if page.compression not in BYTES | PICTURES:
        raise UnreadableImageError(f"it is compressed as {name}, which is not read")
    try:
        import imagecodecs  # noqa: F401
    except ImportError:
        # What tifffile has of its own inflates without a limit.
        raise UnreadableImageError(
            f'it is compressed as {name}, which is read with imagecodecs; pip install "hpt_mlflow[tiff]"'
        ) from None
    if page.predictor not in (1, 2, 3):
        raise UnreadableImageError(f"it has the unknown predictor {int(page.predictor)}")


def _bands_last(values: np.ndarray, page: Any) -> np.ndarray:
    """(height, width) or (height, width, bands), without alpha."""
    if values.ndim == 2:
        return values
    if values.ndim != 3:
        raise UnreadableImageError(f"its page has {values.ndim} axes")
    if page.planarconfig == 2:
        values = np.moveaxis(values, 0, 2)
    extra = page.extrasamples
    colours = page.samplesperpixel - len(extra)
    kept = [i for i in range(page.samplesperpixel) if i < colours or extra[i - colours] not in ALPHAS]
    values = values if len(kept) == page.samplesperpixel else values[..., kept]
    return values[..., 0] if values.shape[2] == 1 else values


def _declared_range(page: Any, dtype: np.dtype) -> tuple[float | None, float | None]:
    for lowest, highest in ((S_MIN_SAMPLE, S_MAX_SAMPLE), (MIN_SAMPLE, MAX_SAMPLE)):
        low, high = (_number(page.tags.valueof(tag), pick) for tag, pick in ((lowest, min), (highest, max)))
        if low is not None and high is not None and low < high:
            return low, high
    bits = page.bitspersample
    if dtype.kind == "u" and isinstance(bits, int) and bits < 8 * dtype.itemsize:
        return 0.0, 2.0**bits - 1
    return (0.0, 255.0) if dtype == np.uint8 else (None, None)


def _number(value: Any, pick: Any) -> float | None:
    """Of one number or one per sample, the lowest or highest; None if there is none."""
    try:
        number = float(pick(value) if isinstance(value, tuple | list | np.ndarray) else value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _inverted(
    values: np.ndarray, low: float | None, high: float | None
) -> tuple[np.ndarray, float | None, float | None]:
    """From white to black: higher is brighter."""
    if values.dtype.kind == "f":
        if low is not None and high is not None:
            return low + high - values, low, high
        # Numbers between 0 and 1 are a share of white.
        return (1 - values if values.min() >= 0 and values.max() <= 1 else -values), None, None
    ends = np.iinfo(values.dtype)
    if low is None or high is None:
        return np.invert(values), None, None
    if low >= ends.min and high <= ends.max:
        low, high = float(int(low)), float(int(high))
        clipped = np.clip(values, int(low), int(high)).astype(np.int64)
        return (int(low) + int(high) - clipped).astype(values.dtype), low, high
    raise UnreadableImageError(f"it declares a range from {low:g} to {high:g} that its numbers cannot have")


def _nodata(page: Any) -> float | None:
    text = page.tags.valueof(GDAL_NODATA)
    try:
        return None if text is None else float(str(text).strip("\0 "))
    except ValueError:
        return None


@cache
def _prepare() -> None:
    """Let nobody log what is odd, without saying in which file."""
    for logger in ("tifffile", "PIL.TiffImagePlugin"):
        logging.getLogger(logger).setLevel(logging.CRITICAL)
