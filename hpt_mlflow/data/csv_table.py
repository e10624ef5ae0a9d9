"""Reading a table of text: its encoding, what separates its values, and whether line 1 names the columns."""

from __future__ import annotations

import codecs
import csv
import io
import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple
from unicodedata import normalize

from hpt_mlflow.data.tree import IMAGE_SUFFIXES
from hpt_mlflow.errors import HptError, printable

# Names of columns, in lower case and without what is neither letter nor digit; the first that is there counts.
IMAGE_COLUMNS = ("path", "image", "file", "filename", "img")
SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "vertical bar"}
# Excel takes the separator from such a first line.
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


class _Reading(NamedTuple):
    """All rows that are not blank, the first of which may name the columns, and what is wrong with them."""

    separator: str
    rows: list[list[str]]
    lines: list[int]
    fault: str

    @property
    def rank(self) -> tuple[bool, bool, int, int]:
        """The higher, the more likely the separator is the one that the table was written with."""
        header = self.rows[0] if self.rows else []
        named = any(plain_name(name) in IMAGE_COLUMNS or has_image_suffix(name) for name in header)
        return not self.fault, named, 0 if self.fault else len(header), len(self.rows)


def plain_name(name: str) -> str:
    """The name in lower case and without what is neither letter nor digit."""
    return "".join(filter(str.isalnum, name.lower()))


def has_image_suffix(name: str) -> bool:
    """Whether a path ends as those of images do."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def find_file(folder: Path | str, name: str) -> str | None:
    """The name of a file as it is in the folder: as it stands, or with slashes for the backslashes of Windows."""
    spellings = (name, name.replace("\\", "/"))
    return next((spelling for spelling in spellings if os.path.isfile(os.path.join(folder, spelling))), None)


def read_table(file: Path, folders: Sequence[Path]) -> Table:
    """Read a table in UTF-8, or UTF-16 with a byte order mark; comma, semicolon, tab or vertical bar separate values.

    The separator is the one by which all lines have as many values as the first. Where line 1 holds the path of an
    image, there are no column names: the columns are then `path` and, where there is another, `label`.

    Args:
        folders: that paths of images may start from.

    Raises:
        HptError: the file cannot be read as such a table.
    """
    shown = printable(str(file))
    if not os.path.isfile(file):
        raise HptError(f"data: there is no CSV file {shown}")
    try:
        content = file.read_bytes()
    except OSError as error:
        raise HptError(f"data: cannot read {shown}: {error.strerror}") from error
    reading = _read_rows(_decode(content, shown), shown)
    if reading.fault:
        raise HptError(f"data: {reading.fault}")
    header, rows, lines = reading.rows[0] if reading.rows else [], reading.rows[1:], reading.lines
    images = [i for i in range(len(header)) if _is_image(i, header, rows, folders)]
    if images:
        return _nameless_table(shown, reading, images)
    _check_header(shown, header)
    if not rows:
        raise HptError(f"data: {shown} has no rows below its line of column names")
    names = [normalize("NFC", name) for name in header]
    return Table(shown, dict(zip(names, zip(*rows, strict=True), strict=True)), lines[1:])


def _decode(content: bytes, shown: str) -> str:
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    newline = "\n".encode("utf-16-le" if content.startswith(codecs.BOM_UTF16_LE) else "utf-16-be") if wide else b"\n"
    try:
        text = content.decode("utf-16" if wide else "utf-8-sig")
        # A zero character is what UTF-16 without a mark, and UTF-32, look like.
        line = text.count("\n", 0, text.index("\0")) + 1 if "\0" in text else 0
    except UnicodeDecodeError as error:
        line = content.count(newline, 0, error.start) + 1
    if line:
        raise HptError(f"data: line {line} of {shown} is not UTF-8; save the file as CSV in UTF-8")
    return text


def _read_rows(text: str, shown: str) -> _Reading:
    """The rows by the separator that the file names, or else by the one that suits all of it."""
    named = SEPARATOR_LINE.match(text)
    if named:
        return _read_by(named[1], text[named.end() :], 1, shown)
    candidates = [separator for separator in SEPARATORS if len(_first_row(text, separator)) > 1]
    # Of separators that suit alike, the first counts; a table of one column has none.
    return max((_read_by(separator, text, 0, shown) for separator in candidates or [","]), key=lambda r: r.rank)


def _first_row(text: str, separator: str) -> list[str]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=separator)
    try:
        return next((row for row in reader if any(map(str.strip, row))), [])
    except csv.Error:
        return []


def _read_by(separator: str, text: str, lines_before: int, shown: str) -> _Reading:
    """The rows by one separator, up to the first that is wrong."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=separator)
    rows: list[list[str]] = []
    lines: list[int] = []
    fault = ""
    try:
        for row in reader:
            # Most values occur in thousands of rows; one copy of each is kept.
            values = [sys.intern(value.strip()) for value in row]
            if not any(values):
                continue
            if rows and len(values) != len(rows[0]):
                fault = (
                    f"line {reader.line_num + lines_before} of {shown} has {len(values)} values for {len(rows[0])} "
                    f"columns, separated by {SEPARATORS[separator]}; quote values that hold the separator"
                )
                break
            rows.append(values)
            lines.append(reader.line_num + lines_before)
    except csv.Error as error:
        fault = f"line {reader.line_num + lines_before} of {shown} is not CSV: {error}"
    return _Reading(separator, rows, lines, fault)


def _is_image(i: int, header: list[str], rows: list[list[str]], folders: Sequence[Path]) -> bool:
    """Whether what line 1 has in a column is an image, as in other rows, and not the name of the column."""
    value = header[i]
    if not value or any(plain_name(name) in IMAGE_COLUMNS for name in header):
        return False
    if any(find_file(folder, value) for folder in folders):
        return True
    # An image that is missing, or a row of another kind below it, must not make a name of the first image.
    return has_image_suffix(value) and (not rows or any(has_image_suffix(row[i]) for row in rows))


def _nameless_table(shown: str, reading: _Reading, images: list[int]) -> Table:
    width = len(reading.rows[0])
    if width > 2 or len(images) > 1:
        example = reading.separator.join(["path", "label", *(f"column{i}" for i in range(3, width + 1))][:width])
        raise HptError(
            f"data: line {reading.lines[0]} of {shown} is an image, {reading.rows[0][images[0]]!r}, where the names of "
            f"its {width} columns should be; put a line such as {printable(example)} above it"
        )
    columns = {"path": tuple(row[images[0]] for row in reading.rows)}
    if width == 2:
        columns["label"] = tuple(row[1 - images[0]] for row in reading.rows)
    return Table(shown, columns, reading.lines)


def _check_header(shown: str, header: list[str]) -> None:
    if not any(header):
        raise HptError(f"data: {shown} has no column names in line 1; write for example path,A,B")
    names = [normalize("NFC", name) for name in header]
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice is not None:
        raise HptError(f"data: line 1 of {shown} names the column {twice!r} twice; rename one")
