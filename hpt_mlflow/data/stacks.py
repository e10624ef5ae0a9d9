"""Images whose bands are files of their own, such as `tile7_B02.tif`, `tile7_B03.tif`, `tile7_B04.tif`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from hpt_mlflow.data.account import LeftOut, examples_of
from hpt_mlflow.data.dataset import Dataset
from hpt_mlflow.data.errors import data_error
from hpt_mlflow.data.file_rows import Files, StackedFiles
from hpt_mlflow.data.names import Names
from hpt_mlflow.errors import printable

# `B8A` comes after `B08` and before `B09`, and `B10` after `B9`.
NUMBER = re.compile(r"(\d+)")


class NamedStack(NamedTuple):
    """One image.

    Attributes:
        name: what its files have in common.
        files: a name per band, in the order of the bands.
    """

    name: str
    files: tuple[str, ...]


def find_stacks(names: Iterable[str], pattern: str) -> tuple[tuple[str, ...], list[NamedStack], list[str]]:
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
        NamedStack(name, tuple(image[band] for band in bands))
        for name, image in sorted(images.items())
        if len(image) == len(bands)
    ]
    kept = {file for stack in stacks for file in stack.files}
    others += sorted(file for image in images.values() for file in image.values() if file not in kept)
    return bands, stacks, others


def with_stacks(dataset: Dataset, pattern: str) -> Dataset:
    """The dataset with an image for all the files that are bands of one; see `find_stacks`.

    Raises:
        HptError: its images are not files, the pattern does not fit, or files of one image differ in label or part.
    """
    files = dataset.pictures
    if type(files) is not Files:
        problem = f"stack={pattern!r} puts files together, and images of {dataset.name} are not files"
        raise data_error(problem, "use it with a folder, a list or a table")
    names = list(files.names)
    bands, stacks, others = find_stacks(names, pattern)
    position = {name: i for i, name in enumerate(names)}
    places = np.array([[position[name] for name in image.files] for image in stacks], np.int64).reshape(-1, len(bands))
    if not len(stacks):
        raise data_error(f"no image of {dataset.name} has all bands {', '.join(bands)}", "change the pattern of stack=")
    held_out = np.zeros(len(names), bool)
    held_out[[] if dataset.test is None else dataset.test] = True
    for what, values in {"label": dataset.labels, "part": held_out, "group": dataset.groups}.items():
        if values is not None and (differs := values[places] != values[places[:, :1]]).any():
            image = printable(stacks[int(np.flatnonzero(differs.reshape(len(places), -1).any(axis=1))[0])].name)
            raise data_error(f"the files of {image} differ in their {what}", "give all bands of an image the same")
    first = places[:, 0]
    entry = LeftOut("files that are no band, or whose image lacks one", len(others), examples_of(others))
    return replace(
        dataset,
        uri=f"{dataset.uri}{'&' if '?' in dataset.uri else '?'}stack={pattern}",
        pictures=StackedFiles(files.folder, [image.files for image in stacks]),
        names=Names.of(image.name for image in stacks),
        labels=None if dataset.labels is None else dataset.labels[first],
        test=None if dataset.test is None else np.flatnonzero(held_out[first]),
        groups=None if dataset.groups is None else dataset.groups[first],
        left_out=(*dataset.left_out, entry) if others else dataset.left_out,
    )


def _natural(text: str) -> tuple[tuple[int, str], ...]:
    """A key that sorts numbers within a text as numbers."""
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in NUMBER.split(text) if part)
