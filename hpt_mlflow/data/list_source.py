"""`list:FILE`: a text file with one image per line."""

from __future__ import annotations

import os
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hpt_mlflow.data.account import LeftOut, examples_of
from hpt_mlflow.data.dataset import MOST, Dataset
from hpt_mlflow.data.errors import data_error, reading
from hpt_mlflow.data.file_rows import Files
from hpt_mlflow.data.labels import WHOLE_NUMBER, LabelColumn
from hpt_mlflow.data.names import Names
from hpt_mlflow.data.paths import name_in, resolve_path
from hpt_mlflow.errors import printable


def open_list(path: str, root: str | None) -> Dataset:
    """Open a text file with one image per line: `PATH`, `PATH LABEL` (a whole number) or `PATH<tab>LABEL` (any text).

    Relative paths start from `root`, or from the folder of the list if there is no root. The list is UTF-8, or UTF-16
    with a byte order mark. Lines that name the same file are one image, in a list of at most `MOST` lines.

    Raises:
        HptError: the file is missing, names no images, labels some lines only, or labels one image in two ways.
    """
    file = resolve_path(path, root)
    shown = printable(str(file))
    if not os.path.isfile(file):
        raise data_error(f"there is no list file {shown}")
    folder = os.path.expanduser(root) if root else file.parent
    column = LabelColumn()

    def read() -> Iterator[str]:
        for name, label in _entries(file):
            column.add(label)
            yield name_in(folder, name)

    try:
        with reading(f"the list {shown}"):
            names = Names.of(read())
    except UnicodeError as error:
        raise data_error(f"the list {shown} is not valid UTF-16", "save it as UTF-8") from error
    if not len(names):
        raise data_error(f"the list {shown} names no images")
    labels, classes = column.numbered(names, shown)
    repeats = _repeats(names) if len(names) <= MOST else {}
    left_out: tuple[LeftOut, ...] = ()
    if repeats:
        if labels is not None:
            _check_labels_agree(names, labels, classes, repeats, shown)
            labels = np.delete(labels, list(repeats))
        examples = examples_of(names[i] for i in repeats.values())
        left_out = (LeftOut("lines that repeat an image", len(repeats), examples, "each image counts once"),)
        names = Names.of(name for i, name in enumerate(names) if i not in repeats)
    return Dataset(
        name=printable(file.stem),
        uri=f"list:{file.resolve()}",
        pictures=Files(folder, names),
        names=names,
        labels=labels,
        classes=classes,
        left_out=left_out,
    )


def _entries(file: Path) -> Iterator[tuple[str, str]]:
    """Name and label of each line that is not blank; the label is empty if there is none."""
    with open(file, "rb") as opened:
        wide = opened.read(2) in (BOM_UTF16_LE, BOM_UTF16_BE)
    encoding, on_error = ("utf-16", "strict") if wide else ("utf-8-sig", "surrogateescape")
    with open(file, encoding=encoding, errors=on_error) as text:
        for line in text:
            name, tab, label = line.rpartition("\t")
            if not tab:
                name, _, label = line.strip().rpartition(" ")
                if not (name and WHOLE_NUMBER.fullmatch(label)):
                    name, label = line, ""
            name, label = name.strip(), label.strip()
            # `<tab>LABEL` has an empty name, but is not a blank line.
            if name or label:
                yield name, label


def _repeats(names: Names) -> dict[int, int]:
    """The first line of each image that a later line names again; `a/b`, `./a/b` and `a//b` are one file."""
    first: dict[str, int] = {}
    places = (os.path.normpath(name) if "./" in name or "//" in name else name for name in names)
    return {i: earlier for i, place in enumerate(places) if (earlier := first.setdefault(place, i)) != i}


def _check_labels_agree(
    names: Names, labels: np.ndarray, classes: tuple[str, ...], repeats: dict[int, int], shown: str
) -> None:
    for later, earlier in repeats.items():
        if labels[later] != labels[earlier]:
            raise data_error(
                f"the list {shown} names the image {names[earlier]!r} with the labels {classes[labels[earlier]]!r} "
                f"and {classes[labels[later]]!r}",
                "make its lines agree, or use csv: with a column of 1 and 0 per label",
            )
