"""`.npy`: an array as numpy saves it. Pickled objects are never loaded."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy_format

from hpt_mlflow.data.errors import UnreadableImageError
from hpt_mlflow.data.formats.numbers import Numbers, check_frame, check_size, checked_count, opened

# Volumes are mapped or read in part, so the file itself may be large.
MOST_FILE_BYTES = 1 << 44
MOST_HEADER_BYTES = 10_000


def frames(file: Path | bytes) -> int:
    """The length of the first of four axes, or 1 for two or three."""
    with opened(file, MOST_FILE_BYTES) as stream:
        shape = _header(stream)[0]
    return checked_count(shape[0]) if len(shape) == 4 else 1


def read(file: Path | bytes, frame: int) -> Numbers:
    """An array (height, width), (height, width, channels), (channels, height, width), or several of the latter two.

    Of three axes, the shortest one is the channels; if several are equally short, the last one.
    """
    with opened(file, MOST_FILE_BYTES) as stream:
        shape, fortran, dtype = _header(stream)
        start = stream.tell()
        check_frame(frame, shape[0] if len(shape) == 4 else 1)
        one = shape[1:] if len(shape) == 4 else shape
        height, width, channels = (*_image_shape(one), 1)[:3]
        check_size(height, width, channels, dtype.itemsize)
        size = int(np.prod(one)) * dtype.itemsize
        whole = size * (shape[0] if len(shape) == 4 else 1)
        if stream.seek(0, 2) - start < whole:
            raise UnreadableImageError(f"it ends before its {'x'.join(map(str, shape))} numbers do")
        if fortran and len(shape) == 4:
            raise UnreadableImageError("its images are not one after another; save it with numpy.ascontiguousarray")
        stream.seek(start + frame * size)
        flat = np.frombuffer(stream.read(size), dtype)
    values = flat.reshape(one, order="F" if fortran else "C")
    if len(one) == 3 and _channel_axis(one) == 0:
        values = np.moveaxis(values, 0, 2)
    return Numbers(np.ascontiguousarray(values, dtype.newbyteorder("=")))


def _header(stream: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether the first axis varies fastest, and type, of an array of numbers."""
    try:
        # Version 3 differs from 2 in the names of fields, which images do not have.
        is_first = npy_format.read_magic(stream) == (1, 0)
        reader = npy_format.read_array_header_1_0 if is_first else npy_format.read_array_header_2_0
        shape, fortran, dtype = reader(stream, max_header_size=MOST_HEADER_BYTES)
    # Its text is parsed, never run, and may be anything.
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        raise UnreadableImageError("its header is not one that numpy writes") from error
    if dtype.hasobject:
        raise UnreadableImageError("it holds pickled objects, which are not loaded")
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise UnreadableImageError(f"{dtype} is not a type of pixels")
    if not 2 <= len(shape) <= 4:
        raise UnreadableImageError(f"an array of {len(shape)} axes is not an image")
    return shape, fortran, dtype


def _channel_axis(shape: tuple[int, ...]) -> int:
    shortest = min(shape)
    axis = max(i for i in range(3) if shape[i] == shortest)
    if axis == 1:
        raise UnreadableImageError(f"of {'x'.join(map(str, shape))} numbers, no axis at either end is the channels")
    return axis


def _image_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[1:], shape[0]) if len(shape) == 3 and _channel_axis(shape) == 0 else shape
