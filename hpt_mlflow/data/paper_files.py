"""What the readers of the paper's layouts share: finding the folder, reading its files safely, making a `Dataset`."""

from __future__ import annotations

import csv
import json
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hpt_mlflow.data.catalogue import CatalogueEntry
from hpt_mlflow.data.dataset import Dataset, evenly_spaced
from hpt_mlflow.data.labels import WHOLE_NUMBER
from hpt_mlflow.data.names import Files, Names
from hpt_mlflow.data.tree import IMAGE_SUFFIXES, SYSTEM_FOLDERS
from hpt_mlflow.errors import HptError, one_line, printable

# So many images are looked for to find out whether they lie where the layout says.
LOOKED_FOR = 100

log = logging.getLogger("hpt_mlflow")


class Content(NamedTuple):
    """What a reader found.

    Attributes:
        names: N paths relative to the folder, parts joined by `/`.
        labels: int64 (N,), or uint8 (N, L), or None.
        classes: names of the classes or labels.
        test: indices of the official test part, int64, or None.
        groups: int64 (N,), or None.
    """

    names: Sequence[str]
    labels: np.ndarray | None
    classes: tuple[str, ...]
    test: np.ndarray | None = None
    groups: np.ndarray | None = None


def other_layout(entry: CatalogueEntry, folder: Path, what: str) -> HptError:
    """The error for a folder that is not as the dataset unpacks."""
    return HptError(
        f"data: {printable(str(folder))} is not {entry.title} as it unpacks: {printable(what)}; see hpt datasets "
        f"{entry.key}; people get it from {entry.source}"
    )


def first_there(entry: CatalogueEntry, base: Path, choices: Sequence[str]) -> str:
    """The first of these files or folders that is in a folder.

    Raises:
        HptError: none of them is.
    """
    there = next((name for name in choices if (base / name).exists()), None)
    if there is None:
        raise other_layout(entry, base, f"{' or '.join(choices)} is missing")
    return there


def find_base(entry: CatalogueEntry, root: Path, inner: Sequence[str], required: Iterable[str | Sequence[str]]) -> Path:
    """The folder that holds all that is required: the root, or one within it.

    Args:
        entry: for the message.
        root: as the user gave it.
        inner: names of the folder that the archive unpacks to, which may lie in the root.
        required: files and folders in it; of several names for one, any will do.

    Raises:
        HptError: no folder holds them.
    """
    wanted = [(names,) if isinstance(names, str) else names for names in required]
    if not root.is_dir():
        raise HptError(
            f"data: there is no folder {printable(str(root))} for {entry.address}; it is to hold {entry.title}, which "
            f"people get from {entry.source}"
        )
    for base in (root, *(root / name for name in inner)):
        if all(any((base / name).exists() for name in choices) for choices in wanted):
            return base
    missing = next(choices for choices in wanted if not any((root / name).exists() for name in choices))
    raise other_layout(entry, root, f"{' or '.join(missing)} is missing")


def build(entry: CatalogueEntry, root: Path, base: Path, content: Content) -> Dataset:
    """The dataset of what a reader found in a folder.

    Raises:
        HptError: there are no images, or of the test part, or of the rest, none is there.
    """
    if not len(content.names):
        raise other_layout(entry, base, "no images are found")
    names = Names.of(content.names)
    files = Files(base, names)
    test = np.array([], dtype=np.int64) if content.test is None else content.test
    for part in (np.setdiff1d(np.arange(len(names)), test), test):
        if len(part) and not any(os.path.exists(files[i]) for i in evenly_spaced(part, LOOKED_FOR)):
            raise other_layout(entry, base, f"{names[part[0]]} is missing")
    expected = entry.sizes.total
    # What is opened may be less than there is (labels of test are rarely published), but hardly less than half.
    if expected is not None and len(names) < expected / 2:
        log.warning("data: %s has %d images of %d in %s; is it complete?", entry.title, len(names), expected, str(base))
    return Dataset(
        name=entry.key,
        uri=f"paper:{entry.key}?root={root}",
        pictures=files,
        names=names,
        labels=content.labels,
        classes=content.classes,
        test=content.test,
        groups=content.groups,
    )


def image_names(folder: Path) -> list[str]:
    """Names of the image files in a folder, sorted; hidden ones are left out."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.name[0] != "."]
    except OSError as error:
        raise HptError(f"data: cannot look into {printable(str(folder))}: {error.strerror}") from error
    return sorted(name for name in names if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES)


def folder_names(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted; hidden ones and those of systems and tools are left out."""
    try:
        with os.scandir(folder) as entries:
            folders = [entry.name for entry in entries if entry.is_dir() and entry.name[0] != "."]
    except OSError as error:
        raise HptError(f"data: cannot look into {printable(str(folder))}: {error.strerror}") from error
    return sorted(name for name in folders if name.lower() not in SYSTEM_FOLDERS)


def read_text(entry: CatalogueEntry, file: Path) -> str:
    """A text file in UTF-8.

    Raises:
        HptError: it cannot be read as such.
    """
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise HptError(f"data: cannot read {printable(str(file))}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise other_layout(entry, file.parent, f"{file.name} is not UTF-8") from error


def read_json(entry: CatalogueEntry, file: Path, keys: frozenset[str]) -> Any:
    """A JSON file, of whose objects only these keys are kept: outlines take most of a file of a gigabyte.

    Raises:
        HptError: it cannot be read as such.
    """
    text = read_text(entry, file)
    try:
        return json.loads(text, object_pairs_hook=lambda pairs: {key: value for key, value in pairs if key in keys})
    except (ValueError, RecursionError) as error:
        raise other_layout(entry, file.parent, f"{file.name} is no JSON ({one_line(error)})") from error


def read_rows(entry: CatalogueEntry, file: Path, columns: Sequence[str]) -> list[tuple[str, ...]]:
    """The values of these columns of a CSV file, stripped of blanks, one tuple a row.

    Raises:
        HptError: it cannot be read as such, or lacks a column or a value.
    """
    reader = csv.reader(read_text(entry, file).splitlines(), strict=True)
    rows = []
    try:
        header = [name.strip() for name in next(reader, [])]
        absent = next((name for name in columns if name not in header), None)
        if absent is not None:
            raise other_layout(entry, file.parent, f"{file.name} has no column {absent!r}")
        positions = [header.index(name) for name in columns]
        for row in reader:
            if row and len(row) != len(header):
                raise other_layout(entry, file.parent, f"line {reader.line_num} of {file.name} is cut short")
            if row:
                rows.append(tuple(row[i].strip() for i in positions))
    except csv.Error as error:
        raise other_layout(entry, file.parent, f"line {reader.line_num} of {file.name} is no CSV ({error})") from error
    return rows


def labelled_lines(entry: CatalogueEntry, file: Path) -> Iterable[tuple[str, str]]:
    """Path and label of each line of a list; blank lines are none."""
    for i, line in enumerate(read_text(entry, file).splitlines()):
        if line.strip():
            name, _, label = line.strip().rpartition(" ")
            if not WHOLE_NUMBER.fullmatch(label):
                raise other_layout(entry, file.parent, f"line {i + 1} of {file.name} is not PATH NUMBER")
            yield check_inside(entry, file, name.strip()), label


def check_inside(entry: CatalogueEntry, file: Path, name: str) -> str:
    """A path that a file of the dataset names; it must stay within the dataset's folder.

    Raises:
        HptError: it leads elsewhere.
    """
    if not name or "\0" in name or name.startswith("/") or "\\" in name or ".." in name.split("/"):
        raise other_layout(entry, file.parent, f"{file.name} names the image {name!r}, which is not in the folder")
    return name


def numbered_groups(keys: Sequence[str]) -> np.ndarray:
    """Numbers of groups, int64 (N,), from their names."""
    return np.unique(np.asarray(keys, dtype=object).astype(str), return_inverse=True)[1].reshape(-1).astype(np.int64)
