"""Shared by the readers of the paper's datasets: finding the folder, reading its files safely, making a `Dataset`."""

from __future__ import annotations

import csv
import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hpt_mlflow.data.catalogue import CatalogueEntry
from hpt_mlflow.data.dataset import Dataset, evenly_spaced
from hpt_mlflow.data.errors import data_error, reading
from hpt_mlflow.data.file_rows import Files
from hpt_mlflow.data.labels import WHOLE_NUMBER
from hpt_mlflow.data.names import Names
from hpt_mlflow.data.pictures import has_image_suffix
from hpt_mlflow.data.tree import SYSTEM_FOLDERS
from hpt_mlflow.errors import HptError, one_line, printable

# Images that are looked for to find out whether they are where the layout says.
LOOKED_FOR = 100

log = logging.getLogger("hpt_mlflow")


class Content(NamedTuple):
    """The content of a dataset's folder.

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
    return data_error(
        f"{printable(str(folder))} is not {entry.title} as it unpacks: {printable(what)}",
        f"see hpt datasets {entry.key}; people get it from {entry.source}",
    )


def first_there(entry: CatalogueEntry, base: Path, choices: Sequence[str]) -> str:
    """The first of these files or folders that exists in a folder.

    Raises:
        HptError: none of them does.
    """
    there = next((name for name in choices if (base / name).exists()), None)
    if there is None:
        raise other_layout(entry, base, f"{' or '.join(choices)} is missing")
    return there


def find_base(entry: CatalogueEntry, root: Path, inner: Sequence[str], required: Iterable[str | Sequence[str]]) -> Path:
    """The folder that contains all that is required: the root, or a folder in it.

    Args:
        entry: for the message.
        root: as the user gave it.
        inner: names of the folder that the archive unpacks to, which may be in the root.
        required: files and folders in it; any of several names for one will do.

    Raises:
        HptError: no folder contains them.
    """
    wanted = [(names,) if isinstance(names, str) else names for names in required]
    if not root.is_dir():
        problem = f"there is no folder {printable(str(root))} for {entry.address}"
        raise data_error(problem, f"put {entry.title} there, which people get from {entry.source}")
    for base in (root, *(root / name for name in inner)):
        if all(any((base / name).exists() for name in choices) for choices in wanted):
            return base
    missing = next(choices for choices in wanted if not any((root / name).exists() for name in choices))
    raise other_layout(entry, root, f"{' or '.join(missing)} is missing")


def build(entry: CatalogueEntry, root: Path, base: Path, content: Content) -> Dataset:
    """The dataset of a folder's content.

    Raises:
        HptError: there are no images, or none of the test part, or none of the rest, exists.
    """
    if not len(content.names):
        raise other_layout(entry, base, "it has no images")
    names = Names.of(content.names)
    files = Files(base, names)
    test = np.array([], dtype=np.int64) if content.test is None else content.test
    for part in (np.setdiff1d(np.arange(len(names)), test), test):
        if len(part) and not any(os.path.exists(files[i]) for i in evenly_spaced(part, LOOKED_FOR)):
            raise other_layout(entry, base, f"{names[part[0]]} is missing")
    expected = entry.sizes.total
    # Less may be opened than there is (labels of test are rarely published), but hardly less than half.
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
    with reading(printable(str(folder))), os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.name[0] != "." and has_image_suffix(entry.name))


def folder_names(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted; hidden ones and those of systems and tools are left out."""
    with reading(printable(str(folder))), os.scandir(folder) as entries:
        folders = [entry.name for entry in entries if entry.is_dir() and entry.name[0] != "."]
    return sorted(name for name in folders if name.lower() not in SYSTEM_FOLDERS)


@contextmanager
def parsing(entry: CatalogueEntry, file: Path) -> Iterator[None]:
    """Turn whatever a malformed file makes the block raise into an error that names the file."""
    try:
        yield
    except HptError:
        raise
    # Damaged data may raise almost anything.
    except Exception as error:
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise other_layout(entry, file.parent, f"{file.name} cannot be read ({reason})") from error


def read_text(entry: CatalogueEntry, file: Path) -> str:
    """A text file in UTF-8.

    Raises:
        HptError: it cannot be read as such.
    """
    with parsing(entry, file), reading(printable(str(file))):
        return file.read_text(encoding="utf-8-sig")


def read_json(entry: CatalogueEntry, file: Path, keys: frozenset[str]) -> Any:
    """A JSON file, with only these keys of its objects: outlines take most of a file of a gigabyte.

    Raises:
        HptError: it cannot be read as such.
    """
    text = read_text(entry, file)
    with parsing(entry, file):
        return json.loads(text, object_pairs_hook=lambda pairs: {key: value for key, value in pairs if key in keys})


def read_rows(entry: CatalogueEntry, file: Path, columns: Sequence[str]) -> list[tuple[str, ...]]:
    """The values of these columns of a CSV file, stripped of blanks, one tuple per row.

    Raises:
        HptError: it is not CSV, or lacks a column or a value.
    """
    reader = csv.reader(read_text(entry, file).splitlines(), strict=True)
    with parsing(entry, file):
        header = [name.strip() for name in next(reader, [])]
        positions = [header.index(name) for name in columns]
        rows = []
        for row in filter(None, reader):
            if len(row) != len(header):
                raise ValueError(f"line {reader.line_num} is cut short")
            rows.append(tuple(row[i].strip() for i in positions))
        return rows


def labelled_lines(entry: CatalogueEntry, file: Path) -> Iterable[tuple[str, str]]:
    """Path and label of each line of a list that is not blank."""
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
