"""`csv:FILE`: a table of images with a column a label, as CheXpert comes, or with one column of class names."""

from __future__ import annotations

import csv
import io
import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

import numpy as np

from hpt_mlflow.data.dataset import Dataset
from hpt_mlflow.data.labels import number_classes
from hpt_mlflow.data.names import Files, Names
from hpt_mlflow.data.parts import TEST, TRAIN, VALIDATION, held_out, part_of
from hpt_mlflow.data.paths import resolve_path
from hpt_mlflow.errors import HptError, printable

# Names of columns, in lower case and without what is neither letter nor digit; the first that is there counts.
IMAGE_COLUMNS = ("path", "image", "file", "filename", "img")
CLASS_COLUMNS = ("label", "class", "category")
SPLIT_COLUMNS = ("split",)
GROUP_COLUMNS = ("patient", "patientid", "subject", "subjectid", "group", "groupid")
# A folder of CheXpert's paths.
PATIENT_FOLDER = re.compile(r"(?<![^/])patient[0-9]+(?=/)")
# As the paper's reference code maps CheXpert: blank, no and uncertain count as 0.
LABEL_VALUES = {
    text: value
    for value, texts in {0: ("", "0", "0.0", "-1", "-1.0"), 1: ("1", "1.0", "+1", "+1.0")}.items()
    for text in texts
}
# So many images are looked for to find out which folder their paths start from.
LOOKED_FOR = 100


class Table(NamedTuple):
    """A CSV file as it was read.

    Attributes:
        shown: the file's path as it can be printed.
        columns: name to values, which are stripped of blanks, N each, in the order of the file.
        lines: the line of the file, counted from 1, that each row ends on.
    """

    shown: str
    columns: dict[str, tuple[str, ...]]
    lines: list[int]

    def column(self, known: Iterable[str]) -> str | None:
        """The column with the first of the known names, in any case and spacing."""
        plain = {"".join(filter(str.isalnum, name.lower())): name for name in reversed(self.columns)}
        return next((plain[name] for name in known if name in plain), None)


def open_csv(address: str, root: str | None) -> Dataset:
    """Open a table of images: UTF-8, a comma between columns, their names in the first line.

    The images are named by the column path, image, file, filename or img (in any case), or else by the first column.
    Their paths are relative to `root`, or else to the CSV's folder; where they are not found there, to the folder above
    it, since CheXpert's paths start with the name of the folder that its CSV lies in.

    A column label, class or category holds class names. Without one, or where `?labels=` names columns, each label is a
    column of 1, 0, -1 or blank, of which the last three count as 0: all columns that hold nothing else, but for empty
    ones, or those that are named. A column split (train, val, test) gives the test part; where it has no test rows,
    validation is held out. A column patient, subject or group keeps the images of one together in every split; without
    one, a folder `patient00001` in every path does.

    Args:
        address: `FILE`, or `FILE?labels=A,B`; `%26`, `%2C` and `%25` stand for `&`, `,` and `%` in a name.
        root: folder that relative paths start from.

    Raises:
        HptError: the file cannot be read as such a table, or its images are not there.
    """
    path, options = _parse_address(address, root)
    root = options["root"][0] if "root" in options else root
    file = resolve_path(path, root)
    table = _read_table(file)
    image_column = table.column(IMAGE_COLUMNS) or next(filter(None, table.columns))
    names = table.columns[image_column]
    for line, name in zip(table.lines, names, strict=True):
        if not name:
            raise HptError(f"data: line {line} of {table.shown} names no image in the column {image_column!r}")
    folder = _image_folder(table, names, Path(os.path.expanduser(root)) if root else file.parent)

    special = {image_column, table.column(SPLIT_COLUMNS), table.column(GROUP_COLUMNS)}
    labels, classes = _labels(table, options.get("labels"), special)
    test, groups = _test_part(table), _groups(table, image_column)
    if test is not None and groups is not None:
        _check_groups(table, test, groups)
    packed = Names.of(names)
    files = Files(folder, packed)
    return Dataset(
        name=printable(file.stem),
        uri=_address(file, options.get("labels"), root),
        pictures=files,
        names=packed,
        labels=labels,
        classes=classes,
        test=test,
        groups=groups,
    )


def _parse_address(address: str, root: str | None) -> tuple[str, dict[str, list[str]]]:
    """The file, and the values of the options behind a question mark."""
    if "?" not in address or os.path.exists(resolve_path(address, root)):
        return address, {}
    path, _, query = address.rpartition("?")
    options: dict[str, list[str]] = {}
    for option in query.split("&"):
        name, _, value = option.partition("=")
        values = [unquote(part).strip() for part in value.split(",")]
        if name not in ("labels", "root") or not all(values):
            raise HptError(f"data: cannot read {option!r} in csv:{printable(address)}; write csv:FILE?labels=A,B")
        options[name] = values
    return path, options


def _address(file: Path, labels: list[str] | None, root: str | None) -> str:
    """The address that opens the same dataset from anywhere."""
    options = {"labels": labels, "root": [str(Path(os.path.expanduser(root)).resolve())] if root else None}
    query = "&".join(f"{name}={','.join(map(_quote, values))}" for name, values in options.items() if values)
    return f"csv:{file.resolve()}" + (f"?{query}" if query else "")


def _quote(text: str) -> str:
    return text.replace("%", "%25").replace("&", "%26").replace(",", "%2C").replace("?", "%3F")


def _read_table(file: Path) -> Table:
    shown = printable(str(file))
    if not os.path.isfile(file):
        raise HptError(f"data: there is no CSV file {shown}")
    try:
        content = file.read_bytes()
    except OSError as error:
        raise HptError(f"data: cannot read {shown}: {error.strerror}") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise HptError(f"data: line {line} of {shown} is not UTF-8; save the file as CSV in UTF-8") from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows, lines = [], []
    try:
        header = [name.strip() for name in next(reader, [])]
        for row in reader:
            if not row:
                continue
            if len(row) != len(header):
                raise HptError(
                    f"data: line {reader.line_num} of {shown} has {len(row)} values for {len(header)} columns; quote "
                    "values that hold a comma"
                )
            # Most values occur in thousands of rows; one copy of each is kept.
            rows.append([sys.intern(value.strip()) for value in row])
            lines.append(reader.line_num)
    except csv.Error as error:
        raise HptError(f"data: line {reader.line_num} of {shown} is no CSV: {error}") from error
    _check_header(shown, header)
    if not rows:
        raise HptError(f"data: {shown} has no rows below its line of column names")
    return Table(shown, dict(zip(header, zip(*rows, strict=True), strict=True)), lines)


def _check_header(shown: str, header: list[str]) -> None:
    if not any(header):
        raise HptError(f"data: {shown} has no column names in line 1; write for example path,A,B")
    twice = next((name for name in header if name and header.count(name) > 1), None)
    if twice is not None:
        raise HptError(f"data: line 1 of {shown} names the column {twice!r} twice; rename one")


def _image_folder(table: Table, names: tuple[str, ...], folder: Path) -> Path:
    """The folder that the images are found in: this one or the one above it."""
    some = [names[i] for i in np.unique(np.linspace(0, len(names) - 1, LOOKED_FOR).astype(np.int64))]
    above = folder.resolve().parent
    for candidate in (folder, above):
        if any(_exists(candidate / name) for name in some):
            return candidate
    raise HptError(
        f"data: no image of {table.shown} is in {printable(str(folder))} or {printable(str(above))}, the first is "
        f"{names[0]!r}; name the folder that paths start from with --root"
    )


def _exists(file: Path) -> bool:
    try:
        return os.path.exists(file)
    except ValueError:  # no file can have this name
        return False


def _labels(
    table: Table, asked: list[str] | None, special: set[str | None]
) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Classes int64 (N,), or labels uint8 (N, L), and their names; or None where there are none."""
    if asked is not None:
        return _named_labels(table, asked)
    class_column = table.column(CLASS_COLUMNS)
    if class_column is not None and class_column not in special and any(table.columns[class_column]):
        values = table.columns[class_column]
        for line, value in zip(table.lines, values, strict=True):
            if not value:
                raise HptError(
                    f"data: line {line} of {table.shown} has no {class_column!r}; give every row one, or none"
                )
        return number_classes(list(values))
    found = [
        name
        for name, values in table.columns.items()
        if name and name not in special and any(values) and set(values) <= LABEL_VALUES.keys()
    ]
    return _matrix(table, found) if found else (None, ())


def _named_labels(table: Table, asked: list[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """The labels that were asked for by name, once each."""
    for name in asked:
        if name not in table.columns:
            has = ", ".join(filter(None, table.columns))
            raise HptError(f"data: {table.shown} has no column {name!r}; it has {printable(has)}")
        for line, value in zip(table.lines, table.columns[name], strict=True):
            if value not in LABEL_VALUES:
                raise HptError(
                    f"data: line {line} of {table.shown} has {value!r} in the column {name!r}; a label is 1, 0, -1 or "
                    "blank"
                )
    return _matrix(table, list(dict.fromkeys(asked)))


def _matrix(table: Table, names: list[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels uint8 (N, L) of these columns, and their names as they can be shown."""
    columns = [[LABEL_VALUES[value] for value in table.columns[name]] for name in names]
    return np.array(columns, dtype=np.uint8).T.copy(), tuple(map(printable, names))


def _test_part(table: Table) -> np.ndarray | None:
    """The rows that are held out, int64: test, or validation where there is no test; None where all rows are alike."""
    column = table.column(SPLIT_COLUMNS)
    if column is None:
        return None
    parts = list(map(part_of, table.columns[column]))
    for line, part, value in zip(table.lines, parts, table.columns[column], strict=True):
        if part not in (TRAIN, VALIDATION, TEST):
            raise HptError(f"data: line {line} of {table.shown} has the split {value!r}; use train, val or test")
    test = np.flatnonzero([part == held_out(parts) for part in parts])
    return test if 0 < len(test) < len(parts) else None


def _groups(table: Table, image_column: str) -> np.ndarray | None:
    """The number of the group that each row is of, int64 (N,), or None where no column says."""
    column = table.column(GROUP_COLUMNS)
    if column is None:
        # CheXpert and datasets like it name the patient in the path alone.
        patients = [PATIENT_FOLDER.search(name) for name in table.columns[image_column]]
        found = [patient.group() for patient in patients if patient]
        return _numbered(found) if len(found) == len(patients) else None
    values = table.columns[column]
    for line, value in zip(table.lines, values, strict=True):
        if not value:
            raise HptError(f"data: line {line} of {table.shown} has no {column!r}; give every row one")
    return _numbered(values)


def _numbered(values: Sequence[str]) -> np.ndarray:
    return np.unique(values, return_inverse=True)[1].reshape(-1).astype(np.int64)


def _check_groups(table: Table, test: np.ndarray, groups: np.ndarray) -> None:
    both = np.intersect1d(groups[test], np.delete(groups, test))
    if len(both):
        column = table.column(GROUP_COLUMNS)
        row = int(np.flatnonzero(groups == both[0])[0])
        named = f"{column} {table.columns[column][row]!r}" if column else "a patient"
        raise HptError(
            f"data: {named} (line {table.lines[row]} of {table.shown}) is in the test "
            "part and outside of it; put all its rows into one part"
        )
