"""The formats that are read here rather than by Pillow. To add one: a file beside this one, and a line in `FORMATS`.

A module of a format has two functions:

- `frames(file: Path | bytes) -> int`: how many images the file holds, from its header; 0 for a valid file without any.
- `read(file: Path | bytes, frame: int) -> Numbers`: one of them, the first is 0.

Both may raise anything on damaged data, in bounded time and memory.
"""

from __future__ import annotations

import os
import re
import stat
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from hpt_mlflow.data.errors import UnreadableImageError, explaining
from hpt_mlflow.data.formats.numbers import Numbers

# The magic of NIfTI-1 is the farthest from the start.
START_BYTES = 348


class Format(NamedTuple):
    """How a format is recognised, and what reads it.

    Attributes:
        module: in this package.
        suffixes: lower case, separated by spaces.
        start: a pattern of its first bytes.
        package: what has to be installed, and
        extra: the extra of this project that does so; empty if nothing is missing.
        shared: whether Pillow reads other files of these suffixes, so that only the first bytes decide.
        asks: whether the module's `is_ours(file)` decides as well.
    """

    module: str
    suffixes: str
    start: bytes
    package: str = ""
    extra: str = ""
    shared: bool = False
    asks: bool = False


FORMATS = {
    "DICOM": Format("dicom", ".dcm .dicom .ima", rb".{128}DICM", "pydicom", "dicom"),
    "TIFF": Format("tiff", ".tif .tiff .gtiff", rb"II[*+]\0|MM\0[*+]", "tifffile", "tiff", True, True),
    # Of 16 bits per channel.
    "PNG": Format("png", ".png", rb"\x89PNG\r\n\x1a\n.{4}IHDR.{8}\x10", shared=True),
    "NumPy": Format("npy", ".npy", rb"\x93NUMPY"),
    "NIfTI": Format("nifti", ".nii .nii.gz", rb".{344}(n\+1|ni1)\0|.{4}n\+2\0\r\n\x1a\n", "nibabel", "nifti"),
    "HEIF": Format("heif", ".heic .heif .hif", rb".{4}ftyp(hei[cxms]|hev[cxms]|mif1|msf1)", "pillow_heif", "heif"),
}
WHOLE_SLIDE = frozenset([".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide"])
TILE_SLIDES = (
    "whole-slide images are not read; cut the slide into tiles first, for example with "
    "vips dzsave SLIDE TILES --depth one --tile-size 512 --overlap 0"
)


@cache
def suffixes() -> dict[str, str]:
    """The format of each suffix."""
    return {suffix: name for name, known in FORMATS.items() for suffix in known.suffixes.split()}


@cache
def missing(name: str) -> str:
    """What to install to read a format, as a command; empty if nothing is missing."""
    package = FORMATS[name].package
    return f'pip install "hpt_mlflow[{FORMATS[name].extra}]"' if package and find_spec(package) is None else ""


def suffix_of(name: str) -> str:
    """The suffix of a file in lower case, which is `.nii.gz` as a whole."""
    stem, suffix = os.path.splitext(name.lower())
    whole = os.path.splitext(stem)[1] + suffix
    return whole if whole in suffixes() else suffix


def may_be_dicom(suffix: str) -> bool:
    """Whether a file of this suffix may be one of a study: none, or a number, as the last part of an identifier."""
    return not suffix.strip(".0123456789")


def format_of(file: Path | bytes) -> str | None:
    """The format of `FORMATS` that a file has, by its first bytes, or else its suffix; None for one of Pillow's.

    Raises:
        UnreadableImageError: it is a whole-slide image.
        OSError: it cannot be opened.
    """
    name = _recognised(file)
    # Without the package, Pillow reads what it can.
    if name is None or (FORMATS[name].shared and missing(name)):
        return None
    return name if not FORMATS[name].asks or _module(name).is_ours(file) else None


def _recognised(file: Path | bytes) -> str | None:
    """The format of `FORMATS` that a file has, whether or not Pillow reads it too."""
    suffix = "" if isinstance(file, bytes) else suffix_of(file.name)
    if suffix in WHOLE_SLIDE:
        raise UnreadableImageError(TILE_SLIDES)
    by_suffix = suffixes().get(suffix)
    # Most files are JPEGs, which need not be opened twice. Numbers are the ends of names that DICOM files have.
    if by_suffix is None and not may_be_dicom(suffix):
        return None
    start = first_bytes(file)
    name = next((name for name, known in FORMATS.items() if re.match(known.start, start, re.DOTALL)), None)
    return name or (None if by_suffix is None or FORMATS[by_suffix].shared else by_suffix)


def frames(file: Path | bytes) -> int:
    """How many images a file holds, from its header; 1 for a format that Pillow reads, except the pages of a TIFF.

    Raises:
        UnreadableImageError: why they cannot be counted.
    """
    with explaining():
        name = _recognised(file)
        # Without the package, Pillow reads the first page.
        if name is None or (FORMATS[name].shared and missing(name)):
            return 1
        return int(_ready(name).frames(file))


def read(file: Path | bytes, frame: int = 0) -> Numbers:
    """An image of a file of these formats.

    Raises:
        UnreadableImageError: why it cannot be read, on one line.
    """
    with explaining():
        name = format_of(file)
        if name is None:
            raise UnreadableImageError("it is not a file of " + ", ".join(FORMATS))
        return _ready(name).read(file, frame)


def first_bytes(file: Path | bytes) -> bytes:
    """The first `START_BYTES` of a regular file; of another kind, none."""
    if isinstance(file, bytes):
        return file[:START_BYTES]
    # Opening a FIFO would wait for somebody to write.
    if not stat.S_ISREG(os.stat(file).st_mode):
        raise UnreadableImageError("it is not a regular file")
    with open(file, "rb", buffering=0) as opened:
        return opened.read(START_BYTES)


def _module(name: str) -> Any:
    return import_module(f"hpt_mlflow.data.formats.{FORMATS[name].module}")


def _ready(name: str) -> Any:
    if command := missing(name):
        raise UnreadableImageError(f"{name} is read with {FORMATS[name].package}; {command}")
    return _module(name)
