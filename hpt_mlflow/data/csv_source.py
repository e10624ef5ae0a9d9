"""`csv:FILE`: a table of images with a column for each label, as CheXpert comes, or with one column of classes."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from unicodedata import normalize
from urllib.parse import unquote

import numpy as np

from hpt_mlflow.data.account import LeftOut, examples_of
from hpt_mlflow.data.csv_labels import TableLabels, check_column, find_labels, quote
from hpt_mlflow.data.csv_table import IMAGE_COLUMNS, Table, find_file, read_table
from hpt_mlflow.data.dataset import Dataset, evenly_spaced
from hpt_mlflow.data.errors import data_error
from hpt_mlflow.data.file_rows import Files
from hpt_mlflow.data.groups import with_groups
from hpt_mlflow.data.labels import number_groups
from hpt_mlflow.data.names import Names
from hpt_mlflow.data.parts import TEST, TRAIN, VALIDATION, held_out_images, part_of
from hpt_mlflow.data.paths import name_in, resolve_path
from hpt_mlflow.data.pictures import has_image_suffix
from hpt_mlflow.errors import HptError, printable

OPTIONS = ("labels", "label_column", "root", "group")
# As IMAGE_COLUMNS.
SPLIT_COLUMNS = ("split",)
GROUP_COLUMNS = ("patient", "patientid", "subject", "subjectid", "group", "groupid")
# A patient's folder in the paths of CheXpert.
PATIENT_FOLDER = re.compile(r"(?<![^/])patient[0-9]+(?=/)")
# Images that are looked for to find out which folder their paths start from.
LOOKED_FOR = 100


def open_csv(address: str, root: str | None) -> Dataset:
    """Open a table of images; `read_table` says what files are read, and `find_labels` which columns are labels.

    The images are named by the column path, image, file, filename or img (in any case), or else by the first column
    whose values all end as images do, or else by the first column. Their paths are relative to `root`, or to the CSV's
    folder, or, if they are not found there, to its parent: CheXpert's paths start with the name of the folder that
    contains its CSV. Backslashes are slashes unless a file has that very name. Rows that name the same file, such as
    those of several boxes, are one image.

    A column split (train, val, test) gives the test part; if it has no test rows, validation is held out. A column
    patient, subject or group keeps the images of each together in every split; without one, a folder `patient00001` in
    every path does. `group` names another column, a pattern in the paths, or a file of groups (see `with_groups`).

    Args:
        address: `FILE`, `FILE?label_column=A` for a column of classes, or `FILE?labels=A,B` for columns of 1 and 0, and
            `group=A`, separated by `&`; `%26`, `%2C` and `%25` mean `&`, `,` and `%` in a name.
        root: folder that relative paths start from.

    Raises:
        HptError: the file is not such a table, its images are missing, or rows of one image differ in label, part or
            group.
    """
    path, options = _parse_address(address, root)
    root = options["root"][0] if "root" in options else root
    file = resolve_path(path, root)
    start = Path(os.path.expanduser(root)) if root else file.parent
    folders = (start, start.resolve().parent)
    table = read_table(file, folders)
    image_column = _image_column(table)
    folder = _image_folder(table, image_column, folders)
    names = [name_in(folder, name) for name in table.columns[image_column]]

    label_column = options.get("label_column", [None])[0]
    group = options.get("group", [None])[0]
    is_rule = group is not None and _is_rule(group, table, root)
    group_column = None if is_rule else group or table.column(GROUP_COLUMNS)
    if group_column is not None:
        check_column(table, group_column)
    special = (image_column, table.column(SPLIT_COLUMNS), group_column)
    labels = find_labels(table, options.get("labels"), label_column, {column for column in special if column})
    parts, groups = _parts(table), None if is_rule else _groups(table, names, group_column)
    test = None if parts is None else held_out_images(parts.tolist())
    if test is not None and groups is not None:
        _check_groups(table, test, groups, group_column)
    kept, left_out = _first_rows(table, folder, names, labels, parts, groups, group_column)
    test = None if test is None else np.flatnonzero(np.isin(kept, test))
    packed = Names.of(names[i] for i in kept.tolist())
    dataset = Dataset(
        name=printable(file.stem),
        uri=_address(file, options, root),
        pictures=Files(folder, packed),
        names=packed,
        labels=None if labels.values is None else labels.values[kept],
        classes=labels.classes,
        test=test if test is not None and 0 < len(test) < len(kept) else None,
        groups=None if groups is None else groups[kept],
        unlabelled_because=labels.unlabelled_because,
        left_out=left_out,
    )
    if group is None or not is_rule:
        return dataset
    return replace(with_groups(dataset, group, root), uri=dataset.uri)


def _is_rule(group: str, table: Table, root: str | None) -> bool:
    """Whether groups come from a pattern or a file, and not from a column."""
    return group not in table.columns and ("(" in group or os.path.isfile(resolve_path(group, root)))


def _parse_address(address: str, root: str | None) -> tuple[str, dict[str, list[str]]]:
    """The file, and the values of the options after a question mark."""
    if "?" not in address or os.path.exists(resolve_path(address, root)):
        return address, {}
    path, _, query = address.rpartition("?")
    options: dict[str, list[str]] = {}
    for option in query.split("&"):
        name, _, value = option.partition("=")
        parts = value.split(",") if name in ("labels", "label_column") else [value]
        values = [unquote(part).strip() for part in parts]
        if (
            name not in ("labels", "label_column", "root", "group")
            or not all(values)
            or (name != "labels" and len(values) > 1)
        ):
            raise data_error(
                f"cannot read {option!r} in csv:{printable(address)}",
                "write csv:FILE?label_column=A for a column of classes, or csv:FILE?labels=A,B for columns of 1 and 0; "
                "&group=A for a column of groups",
            )
        options[name] = values if name == "root" else [normalize("NFC", text) for text in values]
    if "labels" in options and "label_column" in options:
        raise data_error(f"csv:{printable(address)} has labels and label_column", "write one of them")
    return path, options


def _address(file: Path, options: dict[str, list[str]], root: str | None) -> str:
    """The address that opens the same dataset from anywhere."""
    absolute = {"root": [str(Path(os.path.expanduser(root)).resolve())]} if root else {}
    if "group" in options and os.path.isfile(groups := resolve_path(options["group"][0], root)):
        absolute["group"] = [str(groups.resolve())]
    query = "&".join(f"{name}={','.join(map(quote, values))}" for name, values in {**options, **absolute}.items())
    return f"csv:{file.resolve()}" + (f"?{query}" if query else "")


def _image_column(table: Table) -> str:
    """The column that names the images.

    Raises:
        HptError: a row names none.
    """
    named = list(filter(None, table.columns))
    paths = (name for name in named if all(map(has_image_suffix, table.columns[name])))
    column = table.column(IMAGE_COLUMNS) or next(paths, named[0])
    for line, name in zip(table.lines, table.columns[column], strict=True):
        if not name:
            raise data_error(f"line {line} of {table.shown} names no image in the column {column!r}")
    return column


def _image_folder(table: Table, column: str, folders: Sequence[Path]) -> Path:
    """The folder that the images are found in."""
    names = table.columns[column]
    sample = [names[i] for i in evenly_spaced(np.arange(len(names)), LOOKED_FOR)]
    for folder in folders:
        if any(find_file(folder, name) for name in sample):
            return folder
    searched = " or ".join(printable(str(folder)) for folder in folders)
    raise data_error(
        f"no image of {table.shown} is in {searched}, the first in the column {column!r} is {names[0]!r}",
        "name the folder that paths start from with --root",
    )


def _parts(table: Table) -> np.ndarray | None:
    """The part of each row, str (N,); None if no column names it."""
    column = table.column(SPLIT_COLUMNS)
    if column is None:
        return None
    values = table.columns[column]
    part = {value: part_of(value) for value in set(values)}
    for line, value in zip(table.lines, values, strict=True):
        if part[value] not in (TRAIN, VALIDATION, TEST):
            raise data_error(f"line {line} of {table.shown} has the split {value!r}", "use train, val or test")
    return np.array([part[value] for value in values])


def _groups(table: Table, names: Sequence[str], column: str | None) -> np.ndarray | None:
    """The number of each row's group, int64 (N,); None if nothing names it."""
    if column is None:
        # CheXpert and datasets like it name the patient only in the path.
        patients = [patient.group() for name in names if (patient := PATIENT_FOLDER.search(name))]
        return number_groups(patients) if len(patients) == len(names) else None
    values = table.columns[column]
    for line, value in zip(table.lines, values, strict=True):
        if not value:
            raise data_error(f"line {line} of {table.shown} has no {column!r}", "give every row one")
    return number_groups(normalize("NFC", value) for value in values)


def _check_groups(table: Table, test: np.ndarray, groups: np.ndarray, column: str | None) -> None:
    both = np.intersect1d(groups[test], np.delete(groups, test))
    if len(both):
        row = int(np.flatnonzero(groups == both[0])[0])
        named = f"{column} {table.columns[column][row]!r}" if column else "a patient"
        raise data_error(
            f"{named} (line {table.lines[row]} of {table.shown}) is in the test part and outside of it",
            "put all its rows into one part",
        )


def _first_rows(
    table: Table,
    folder: Path,
    names: Sequence[str],
    labels: TableLabels,
    parts: np.ndarray | None,
    groups: np.ndarray | None,
    group_column: str | None,
) -> tuple[np.ndarray, tuple[LeftOut, ...]]:
    """The rows that name an image for the first time, int64, ascending, and what was left out.

    Raises:
        HptError: rows of one image differ in label, part or group.
    """
    base, first = os.path.realpath(folder), dict[str, int]()
    of_row = np.fromiter((first.setdefault(_place(base, name), i) for i, name in enumerate(names)), np.int64)
    repeating = np.flatnonzero(of_row != np.arange(len(of_row)))
    if not len(repeating):
        return of_row, ()
    compared = [(table.column(SPLIT_COLUMNS), parts), (group_column, groups)]
    if labels.values is not None:
        by_column = labels.values.reshape(len(of_row), -1).T
        compared = [*zip(labels.columns, by_column, strict=True), *compared]
    for column, values in compared:
        if column is None or values is None:
            continue
        differ = repeating[values[repeating] != values[of_row[repeating]]]
        if len(differ):
            rows = (int(of_row[differ[0]]), int(differ[0]))
            classes = labels.values is not None and labels.values.ndim == 1 and column in labels.columns
            raise _contradiction(table, column, names[rows[0]], rows, classes)
    examples = examples_of(names[i] for i in of_row[repeating])
    entry = LeftOut("rows that repeat an image", len(repeating), examples, "each image counts once")
    return np.flatnonzero(of_row == np.arange(len(of_row))), (entry,)


def _place(base: str, name: str) -> str:
    """The path of a file, the same however it is written."""
    path = name if os.path.isabs(name) else f"{base}/{name}"
    # If `a` is a link, `a/..` may be another folder than it seems.
    return os.path.realpath(path) if "/.." in name.lstrip("./") else os.path.normpath(path)


def _contradiction(table: Table, column: str, name: str, rows: tuple[int, int], classes: bool) -> HptError:
    lines, values = ([of[row] for row in rows] for of in (table.lines, table.columns[column]))
    several = "; if an image may have several labels, give each a column of 1 and 0" if classes else ""
    return data_error(
        f"lines {lines[0]} and {lines[1]} of {table.shown} name the same image, {name!r}, but have {values[0]!r} and "
        f"{values[1]!r} in the column {column!r}",
        f"make all rows of an image agree{several}",
    )
