"""Images whose bands are files of their own, such as `tile7_B02.tif`, `tile7_B03.tif`, `tile7_B04.tif`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hpt_mlflow.data.errors import UnreadableImageError, data_error
from hpt_mlflow.data.formats.pixels import Pixels, check_size
from hpt_mlflow.errors import printable

# `B8A` comes after `B08` and before `B09`, and `B10` after `B9`.
NUMBER = re.compile(r"(\d+)")


class Stack(NamedTuple):
    """One image.

    Attributes:
        name: what its files have in common.
        files: a name per band, in the order of the bands.
    """

    name: str
    files: tuple[str, ...]


def find_stacks(names: Iterable[str], pattern: str) -> tuple[tuple[str, ...], list[Stack], list[str]]:
    r"""Put files of single bands together.

    Args:
        names: of all files.
        pattern: a regular expression of a whole name with two groups, what the files of an image have in common, and
            the band: `(.+)_(B\d+)\.tif`.

    Returns:
        The bands, in the order of the numbers in them; the images that have them all, in the order of their names; and
        the files that are in none: those that the pattern does not fit, and those of images that lack a band.

    Raises:
        HptError: the pattern is not a regular expression of two groups, fits no name, or fits two files of one band.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise data_error(f"{pattern!r} is not a regular expression ({error})", "see Python's module re") from error
    if compiled.groups != 2:
        remedy = r"write one for the image and one for the band, such as '(.+)_(B\d+)\.tif'"
        raise data_error(f"the pattern {pattern!r} has {compiled.groups} groups", remedy)
    images: dict[str, dict[str, str]] = {}
    others: list[str] = []
    for name in names:
        match = compiled.fullmatch(name)
        if match is None or None in match.groups():
            others.append(name)
            continue
        image, band = match.groups()
        other = images.setdefault(image, {}).setdefault(band, name)
        if other != name:
            raise data_error(
                f"{printable(other)} and {printable(name)} are both the band {band!r} of {image!r}",
                "make the pattern tell them apart",
            )
    if not images:
        raise data_error(f"the pattern {pattern!r} fits no file", f"the first is {others[0]!r}" if others else "")
    bands = tuple(sorted({band for image in images.values() for band in image}, key=_natural))
    stacks = [
        Stack(name, tuple(image[band] for band in bands))
        for name, image in sorted(images.items())
        if len(image) == len(bands)
    ]
    kept = {file for stack in stacks for file in stack.files}
    others += sorted(file for image in images.values() for file in image.values() if file not in kept)
    return bands, stacks, others


def stack(bands: Sequence[Pixels], names: Sequence[str]) -> Pixels:
    """One image (height, width, bands) of the first one's type, or of one that holds all values.

    `low`, `high` and `nodata` are those of the bands where all agree.

    Args:
        bands: read from the files of an image.
        names: of the files, for the error.

    Raises:
        UnreadableImageError: a band has several channels, or another size than the first.
    """
    for name, band in zip(names, bands, strict=True):
        if band.values.ndim != 2:
            raise UnreadableImageError(f"{printable(name)} has {band.values.shape[2]} channels, not one")
        if band.values.shape != bands[0].values.shape:
            one, other = (" x ".join(map(str, each.values.shape[::-1])) for each in (bands[0], band))
            raise UnreadableImageError(
                f"{printable(names[0])} has {one} pixels, {printable(name)} {other}; resample them to one grid"
            )
    values = [band.values for band in bands]
    height, width = values[0].shape
    check_size(height, width, len(values), np.result_type(*values).itemsize)
    low, high, nodata = (
        getattr(bands[0], field) if len({getattr(band, field) for band in bands}) == 1 else None
        for field in ("low", "high", "nodata")
    )
    return Pixels(np.stack(values, axis=2), low, high, nodata)


def read_stack(files: Sequence[Path]) -> Pixels:
    """An image from the files of its bands, in this order.

    Raises:
        UnreadableImageError: as `stack`; or a file cannot be read.
    """
    from hpt_mlflow.data.formats.registry import read

    bands = []
    for file in files:
        try:
            bands.append(read(file))
        except UnreadableImageError as error:
            raise UnreadableImageError(f"{printable(file.name)}: {error}") from error
    return stack(bands, [file.name for file in files])


def _natural(text: str) -> tuple[tuple[int, str], ...]:
    """A key that sorts numbers within a text as numbers."""
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in NUMBER.split(text) if part)
