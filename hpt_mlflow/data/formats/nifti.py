"""NIfTI volumes, by nibabel, one slice along the last spatial axis at a time. https://nifti.nimh.nih.gov"""

from __future__ import annotations

import gzip
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from hpt_mlflow.data.errors import UnreadableImageError
from hpt_mlflow.data.formats.numbers import Numbers, check_frame, check_size, checked_count, opened, scaled

# Volumes are read in part, so the file itself may be large.
MOST_FILE_BYTES = 1 << 44
GZIP_START = b"\x1f\x8b"
SKIPPED_AT_ONCE = 1 << 24
# Bytes up to the magic of either version, and those of the headers.
FIRST_BYTES, HEADER_BYTES = 348, {348: "Nifti1Header", 540: "Nifti2Header"}


def frames(file: Path | bytes) -> int:
    """How many slices all its volumes have together."""
    with _opened(file) as stream:
        shape = _shape(_header(stream))
    return checked_count(math.prod(shape[2:]))


def read(file: Path | bytes, frame: int) -> Numbers:
    """A slice: rows along the second axis of the file, columns along the first, after its scaling.

    `low` and `high` are `cal_min` and `cal_max` if the file has them.
    """
    with _opened(file) as stream:
        header = _header(stream)
        shape, dtype = _shape(header), header.get_data_dtype()
        check_frame(frame, checked_count(math.prod(shape[2:])))
        colours = 1 if dtype.names is None else len(dtype.names)
        if dtype.kind not in "biuf" and dtype.names is None:
            raise UnreadableImageError(f"{dtype} is not a type of pixels")
        check_size(shape[1], shape[0], colours, dtype.itemsize // colours)
        size = shape[0] * shape[1] * dtype.itemsize
        data = _bytes_at(stream, _offset(header) + frame * size, size)
    if dtype.names is not None:
        values = np.frombuffer(data, np.uint8).reshape(shape[1], shape[0], colours)[..., :3]
        return Numbers(np.ascontiguousarray(values), 0.0, 255.0)
    values = np.frombuffer(data, dtype).reshape(shape[1], shape[0])
    values = values.astype(dtype.newbyteorder("="))
    slope, intercept = header.get_slope_inter()
    if slope is not None:
        values = scaled(values, float(slope), float(intercept or 0))
    low, high = float(header["cal_min"]), float(header["cal_max"])
    return Numbers(values, *((low, high) if low < high < math.inf else (None, None)))


@contextmanager
def _opened(file: Path | bytes) -> Iterator[BinaryIO]:
    """The file, inflated as it is read if it is gzipped."""
    with opened(file, MOST_FILE_BYTES) as stream:
        packed = stream.read(2) == GZIP_START
        stream.seek(0)
        yield gzip.GzipFile(fileobj=stream) if packed else stream  # type: ignore[misc]


def _header(stream: BinaryIO) -> Any:
    import nibabel

    first = stream.read(FIRST_BYTES)
    if len(first) < FIRST_BYTES:
        raise UnreadableImageError("it ends within its header")
    size = int.from_bytes(first[:4], "little")
    size = size if size in HEADER_BYTES else int.from_bytes(first[:4], "big")
    if size not in HEADER_BYTES:
        raise UnreadableImageError("it is not a NIfTI file")
    content = first + stream.read(size - FIRST_BYTES)
    header = getattr(nibabel, HEADER_BYTES[size])(content, check=False)
    if bytes(header["magic"].tobytes()[:3]) not in (b"n+1", b"n+2"):
        raise UnreadableImageError("its numbers are in another file; save it as one .nii")
    return header


def _shape(header: Any) -> tuple[int, ...]:
    shape = tuple(int(length) for length in header.get_data_shape())
    if len(shape) < 2 or min(shape) < 1:
        raise UnreadableImageError(f"it has the shape {'x'.join(map(str, shape)) or 'of nothing'}")
    return shape


def _offset(header: Any) -> int:
    offset = float(header["vox_offset"])
    if not 0 <= offset < MOST_FILE_BYTES:
        raise UnreadableImageError(f"its numbers start at byte {offset:g}")
    return int(offset)


def _bytes_at(stream: BinaryIO, start: int, size: int) -> bytes:
    """Bytes of a stream that may only be read forward; what is skipped is not kept."""
    left = start - stream.tell()
    if isinstance(stream, gzip.GzipFile):
        while left > 0 and (skipped := len(stream.read(min(left, SKIPPED_AT_ONCE)))):
            left -= skipped
    else:
        stream.seek(start)
    data = stream.read(size)
    if len(data) < size:
        raise UnreadableImageError("it ends before its numbers do")
    return data
