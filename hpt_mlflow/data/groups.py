"""Which images belong together, such as those of one patient: from a pattern in their names, or from a file."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from unicodedata import normalize

import numpy as np

from hpt_mlflow.data.address import GROUP, GROUP_REMEDY
from hpt_mlflow.data.csv_table import IMAGE_COLUMNS, plain_name, read_table
from hpt_mlflow.data.dataset import Dataset
from hpt_mlflow.data.errors import data_error
from hpt_mlflow.data.labels import number_groups
from hpt_mlflow.data.paths import resolve_path
from hpt_mlflow.errors import printable


def with_groups(dataset: Dataset, group: str, root: str | None) -> Dataset:
    """A dataset whose splits keep the images of each group in one part.

    Args:
        group: a file with the group of each image (see `_from_file`), or else a regular expression that is found in the
            name of every image, and whose one group in parentheses is the name of the image's group.
        root: folder that a relative path of a file starts from; the working directory if None.

    Raises:
        HptError: it is neither, an image has no group, there is only one group, or a group is both in the test part
            that the dataset comes with and outside of it.
    """
    file = resolve_path(group, root)
    if os.path.isfile(file):
        names, written = list(_from_file(file, dataset.names)), str(file.resolve())
    else:
        names, written = list(matches(group, dataset.names)), group
    check_groups(dataset, names)
    return replace(dataset, groups=number_groups(names), uri=f"{dataset.uri}{GROUP}{_quote(written)}")


def matches(pattern: str, names: Sequence[str]) -> Iterator[str]:
    """What the one group of a regular expression finds in each name.

    Raises:
        HptError: it is not such an expression, or is not found in every name.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise data_error(f"group={pattern!r} is not a regular expression ({error})", GROUP_REMEDY) from error
    if compiled.groups != 1:
        problem = f"group={pattern!r} is not a file, and as a pattern it has {compiled.groups} groups instead of one"
        raise data_error(problem, GROUP_REMEDY)
    found = [match[1] if (match := compiled.search(name)) else None for name in names]
    without = [name for name, group in zip(names, found, strict=True) if not group]
    if without:
        raise data_error(
            f"the pattern group={pattern!r} is not found in {len(without)} of {len(names)} names, the first is "
            f"{printable(without[0])!r}",
            "change it so that every image has a group",
        )
    return (normalize("NFC", group) for group in found if group)


def _from_file(file: Path, names: Sequence[str]) -> Iterator[str]:
    """The group of each image by a table with a column of names and one of groups, such as `path,group`.

    The names are those of the dataset, such as paths relative to its folder, or the last parts of these if no two
    images have the same.
    """
    table = read_table(file, (file.parent,))
    columns = list(filter(None, table.columns))
    if len(columns) < 2:
        raise data_error(f"{table.shown} has no column of groups", "write a line path,group, and a line for each image")
    image = table.column(IMAGE_COLUMNS) or columns[0]
    group = next((name for name in columns if plain_name(name) == "group"), None)
    group = group or next(name for name in columns if name != image)
    for line, value in zip(table.lines, table.columns[group], strict=True):
        if not value:
            raise data_error(f"line {line} of {table.shown} has no {group!r}", "give every row one")
    known = dict(zip(map(_plain, table.columns[image]), table.columns[group], strict=True))
    by_name = [known.get(_plain(name)) for name in names]
    bases = [os.path.basename(name) for name in names]
    if not any(by_name) and len(set(bases)) == len(bases):
        by_name = [known.get(base) for base in bases]
    without = [name for name, found in zip(names, by_name, strict=True) if found is None]
    if without:
        raise data_error(
            f"{table.shown} names no group of {len(without)} of {len(names)} images, the first is "
            f"{printable(without[0])!r}",
            "add a line for each image",
        )
    return (normalize("NFC", found) for found in by_name if found is not None)


def check_groups(dataset: Dataset, names: Sequence[str]) -> None:
    """
    Args:
        names: of the group of each image, N.

    Raises:
        HptError: there is one group only, so that parts would have none, or one is in the test part and outside of it.
    """
    if len(set(names)) == 1:
        raise data_error(
            f"all {len(names)} images of {dataset.name} are of one group, {printable(names[0])!r}, so that only one "
            "part of a split would have any",
            "name groups of which there are at least 3",
        )
    if dataset.test is None:
        return
    held_out = np.zeros(len(dataset), bool)
    held_out[dataset.test] = True
    tested = {names[i] for i in np.flatnonzero(held_out).tolist()}
    both = next((i for i in np.flatnonzero(~held_out).tolist() if names[i] in tested), None)
    if both is not None:
        raise data_error(
            f"the group {printable(names[both])!r} of {dataset.name} is in the test part and outside of it, for "
            f"example {printable(str(dataset.names[both]))!r}",
            "move all its images into one part",
        )


def _plain(name: str) -> str:
    return os.path.normpath(normalize("NFC", name.replace("\\", "/")))


def _quote(text: str) -> str:
    return text.replace("%", "%25")
