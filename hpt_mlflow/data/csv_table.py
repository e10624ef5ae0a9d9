"""Reading a table of text: its encoding, what separates its values, and whether line 1 names the columns."""

from __future__ import annotations

import codecs
import csv
import io
import os
import re
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from unicodedata import normalize

from hpt_mlflow.data.errors import data_error, reading
from hpt_mlflow.data.pictures import has_image_suffix
from hpt_mlflow.errors import printable

# Names of columns as `plain_name` gives them; the first that a table has counts.
IMAGE_COLUMNS = ("path", "image", "file", "filename", "img")
SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "vertical bar"}
# Excel reads the separator from a first line like this.
SEPARATOR_LINE = re.compile(r'"?sep=([,;\t|])"?(?:\r\n|\r|\n)', re.IGNORECASE)


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
        plain = {plain_name(name): name for name in reversed(self.columns)}
        return next((plain[name] for name in known if name in plain), None)


def plain_name(name: str) -> str:
    """The name in lower case, letters and digits only."""
    return "".join(filter(str.isalnum, name.lower()))


def find_file(folder: Path | str, name: str) -> str | None:
    """The name of an existing file in the folder: as given, or with slashes for the backslashes of Windows.

    `scan.dcm#3` names an image in the file `scan.dcm`.
    """
    plain = re.sub(r"#[0-9]+$", "", name)
    spellings = (name, name.replace("\\", "/"), plain, plain.replace("\\", "/"))
    return next((spelling for spelling in spellings if os.path.isfile(os.path.join(folder, spelling))), None)


def read_table(file: Path, folders: Sequence[Path]) -> Table:
    """Read a table in UTF-8, or UTF-16 with a byte order mark; comma, semicolon, tab or vertical bar separate values.

    The separator is the one that gives line 1 most values. If line 1 holds the path of an image,
    there are no column names: the columns are then `path` and, if there is a second one, `label`.

    Args:
        folders: which paths of images may start from.

    Raises:
        HptError: the file cannot be read as such a table.
    """
    shown = printable(str(file))
    if not os.path.isfile(file):
        raise data_error(f"there is no CSV file {shown}")
    with reading(shown):
        content = file.read_bytes()
    separator, rows, lines = _read_rows(_decode(content, shown), shown)
    header, below = rows[0] if rows else [], rows[1:]
    images = [i for i in range(len(header)) if _is_image(i, header, below, folders)]
    if images:
        return _nameless_table(shown, separator, rows, lines, images)
    names = [normalize("NFC", name) for name in header]
    if not any(names):
        raise data_error(f"{shown} has no column names in line 1", "write for example path,A,B")
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice is not None:
        raise data_error(f"line 1 of {shown} names the column {twice!r} twice", "rename one")
    if not below:
        raise data_error(f"{shown} has no rows below its line of column names")
    return Table(shown, dict(zip(names, zip(*below, strict=True), strict=True)), lines[1:])


def _decode(content: bytes, shown: str) -> str:
    encoding = "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        text = content.decode(encoding)
        # UTF-16 without a mark, and UTF-32, look like zero characters.
        wrong = text.find("\0")
    except UnicodeDecodeError as error:
        text = content[: error.start].decode(encoding, "ignore")
        wrong = len(text)
    if wrong >= 0:
        line = text.count("\n", 0, wrong) + 1
        raise data_error(f"line {line} of {shown} is not UTF-8", "save the file as CSV in UTF-8")
    return text


def _read_rows(text: str, shown: str) -> tuple[str, list[list[str]], list[int]]:
    """The separator, the rows that are not blank, stripped of blanks, and the line that each ends on."""
    named = SEPARATOR_LINE.match(text)
    separator = named[1] if named else max(SEPARATORS, key=lambda choice: len(_first_row(text, choice)))
    reader = _reader(text[named.end() :] if named else text, separator)
    rows: list[list[str]] = []
    lines: list[int] = []
    try:
        for row in reader:
            # Most values occur in thousands of rows; one copy of each is kept.
            values = [sys.intern(value.strip()) for value in row]
            if any(values):
                rows.append(values)
                lines.append(reader.line_num + bool(named))
    except csv.Error as error:
        raise data_error(f"line {reader.line_num + bool(named)} of {shown} is not CSV: {error}") from error
    for line, values in zip(lines, rows, strict=True):
        if len(values) != len(rows[0]):
            raise data_error(
                f"line {line} of {shown} has {len(values)} values for {len(rows[0])} columns, separated by "
                f"{SEPARATORS[separator]}",
                "quote values that contain the separator",
            )
    return separator, rows, lines


def _first_row(text: str, separator: str) -> list[str]:
    with suppress(csv.Error):
        return next((row for row in _reader(text, separator) if any(map(str.strip, row))), [])
    return []


def _reader(text: str, separator: str) -> Any:
    return csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=separator)


def _is_image(i: int, header: list[str], rows: list[list[str]], folders: Sequence[Path]) -> bool:
    """Whether line 1 holds an image in a column, as other rows do, and not the name of the column."""
    value = header[i]
    if not value or any(plain_name(name) in IMAGE_COLUMNS for name in header):
        return False
    if any(find_file(folder, value) for folder in folders):
        return True
    # An image that is missing, or a row of another kind below it, must not turn the first image into a column name.
    return has_image_suffix(value) and (not rows or any(has_image_suffix(row[i]) for row in rows))


def _nameless_table(shown: str, separator: str, rows: list[list[str]], lines: list[int], images: list[int]) -> Table:
    width = len(rows[0])
    if width > 2 or len(images) > 1:
        example = separator.join(["path", "label", *(f"column{i}" for i in range(3, width + 1))][:width])
        raise data_error(
            f"line {lines[0]} of {shown} has an image, {rows[0][images[0]]!r}, in place of the names of its "
            f"{width} columns",
            f"put a line such as {printable(example)} above it",
        )
    columns = {"path": tuple(row[images[0]] for row in rows)}
    if width == 2:
        columns["label"] = tuple(row[1 - images[0]] for row in rows)
    return Table(shown, columns, lines)
