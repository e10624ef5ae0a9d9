"""`list:FILE`: a text file with one image a line, read in blocks, so that 14 million lines take seconds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from hpt_mlflow.data.dataset import Dataset
from hpt_mlflow.data.labels import WHOLE_NUMBER, LabelColumn
from hpt_mlflow.data.names import Files, Names
from hpt_mlflow.data.paths import resolve_path
from hpt_mlflow.errors import HptError, printable

BLOCK_BYTES = 1 << 24
# What has no lines is no list.
LONGEST_LINE = 1 << 24
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
NEWLINE, TAB, SPACE, MINUS, ZERO, NINE = b"\n\t -09"
# Longer runs of digits are left to Python, since a step is taken for each digit.
MOST_DIGITS = 20
# First bytes of characters that Python takes for blanks beside ASCII's: U+0085, U+00A0, U+1680, U+2000 to U+3000.
MAY_BE_BLANK = np.array([0xC2, 0xE1, 0xE2, 0xE3], np.uint8)


def open_list(path: str, root: str | None) -> Dataset:
    """A text file with one image a line: `PATH`, `PATH LABEL` with a whole number, or `PATH<tab>LABEL` with any text.

    Relative paths start from `root`, or from the folder of the list where there is no root.

    Raises:
        HptError: there is no such file, it names no images, or it has labels for some lines only.
    """
    file = resolve_path(path, root)
    shown = printable(str(file))
    if not os.path.isfile(file):
        raise HptError(f"data: there is no list file {shown}")
    chunks: list[pa.BinaryArray] = []
    column = LabelColumn()
    try:
        for block in _blocks(file, shown):
            names, labels = _read_block(block)
            if len(names):
                chunks.append(names)
                column.add(labels)
    except OSError as error:
        raise HptError(f"data: cannot read the list {shown}: {error.strerror}") from error
    if not chunks:
        raise HptError(f"data: the list {shown} names no images")
    packed = Names(chunks)
    numbers, classes = column.numbered(packed, shown)
    return Dataset(
        name=printable(file.stem),
        uri=f"list:{file.resolve()}",
        pictures=Files(os.path.expanduser(root) if root else file.parent, packed),
        names=packed,
        labels=numbers,
        classes=classes,
    )


def _blocks(file: Path, shown: str) -> Iterator[bytes]:
    """The file in pieces of whole lines, each of which ends with a newline, whatever the system it was written on."""
    with open(file, "rb") as opened:
        if opened.read(len(BYTE_ORDER_MARK)) != BYTE_ORDER_MARK:
            opened.seek(0)
        rest = b""
        while block := opened.read(BLOCK_BYTES):
            block = block.replace(b"\r", b"\n")
            end = block.rfind(b"\n") + 1
            if not end and len(rest) > LONGEST_LINE:
                raise HptError(f"data: a line of {shown} has more than {LONGEST_LINE} bytes; give a list of images")
            if end:
                yield rest + block[:end]
                rest = block[end:]
            else:
                rest += block
        if rest:
            yield rest + b"\n"


class _Ranges(NamedTuple):
    """Of each line the bytes from `start` to before `end`, int64 (n,), and the label's; an empty one is none."""

    start: np.ndarray
    end: np.ndarray
    label_start: np.ndarray
    label_end: np.ndarray


def _read_block(block: bytes) -> tuple[pa.BinaryArray, pa.BinaryArray]:
    """Names and labels of the lines that are not blank; the label is empty where there is none."""
    data = np.frombuffer(block, np.uint8)
    newlines = np.flatnonzero(data == NEWLINE)
    line_start = np.concatenate([[0], newlines[:-1] + 1])
    ranges = _find(data, line_start, newlines)
    blank = ranges.start == ranges.end
    tabbed = np.zeros(len(newlines), bool)
    tabbed[np.searchsorted(newlines, np.flatnonzero(data == TAB))] = True
    # `<tab>LABEL` has an empty name, but is no blank line.
    blank &= ~tabbed | (ranges.label_start == ranges.label_end)
    for i in np.flatnonzero(_doubtful(data, ranges)).tolist():
        blank[i] = not _find_exactly(block, int(line_start[i]), int(newlines[i]), ranges, i)
    kept = np.flatnonzero(~blank)
    return _cut(block, ranges.start[kept], ranges.end[kept]), _cut(
        block, ranges.label_start[kept], ranges.label_end[kept]
    )


def _find(data: np.ndarray, line_start: np.ndarray, line_end: np.ndarray) -> _Ranges:
    """Names and labels, taking no characters but ASCII's spaces and tabs for blanks."""
    start, end = _strip(data, line_start, line_end)
    label_start, label_end = end.copy(), end.copy()
    tabs = np.flatnonzero(data == TAB)
    of_line = np.searchsorted(line_end, tabs)
    last = np.append(of_line[1:] != of_line[:-1], True)[: len(tabs)]
    tabs, tabbed = tabs[last], of_line[last]
    start[tabbed], end[tabbed] = _strip(data, line_start[tabbed], tabs)
    label_start[tabbed], label_end[tabbed] = _strip(data, tabs + 1, line_end[tabbed])

    plain = np.ones(len(start), bool)
    plain[tabbed] = False
    lines = np.flatnonzero(plain & (end > start))
    before = _before_number(data, start[lines], end[lines])
    lines, before = lines[before >= 0], before[before >= 0]
    label_start[lines] = before + 1
    end[lines] = _strip(data, start[lines], before)[1]
    return _Ranges(start, end, label_start, label_end)


def _strip(data: np.ndarray, start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ranges without the spaces and tabs at their ends."""
    start, end = start.copy(), end.copy()
    for edge, step, at in ((start, 1, 0), (end, -1, -1)):
        some = np.flatnonzero(start < end)
        while len(some):
            byte = data[edge[some] + at]
            some = some[(byte == SPACE) | (byte == TAB)]
            edge[some] += step
            some = some[start[some] < end[some]]
    return start, end


def _before_number(data: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Where the space is behind which a whole number stands, up to the end; -1 where none does."""
    position = end - 1
    some = np.arange(len(start))
    for _ in range(MOST_DIGITS):
        byte = data[position[some]]
        some = some[(byte >= ZERO) & (byte <= NINE)]
        some = some[position[some] > start[some]]
        position[some] -= 1
        if not len(some):
            break
    digits = end - 1 - position
    position -= (digits > 0) & (data[position] == MINUS) & (position > start)
    return np.where((digits > 0) & (data[position] == SPACE), position, -1)


def _doubtful(data: np.ndarray, ranges: _Ranges) -> np.ndarray:
    """Of which lines a name or label starts or ends with what Python may take for a blank, or has too many digits."""
    doubtful = np.zeros(len(ranges.start), bool)
    for start, end in (ranges[:2], ranges[2:]):
        some = np.flatnonzero(end > start)
        first, last = data[start[some]], data[end[some] - 1]
        doubtful[some] |= (first < SPACE) | np.isin(first, MAY_BE_BLANK) | (last < SPACE) | (last >= 0x80)
    # The search for a number ended before the digits did.
    long = np.flatnonzero(ranges.end - ranges.start > MOST_DIGITS)
    for back in (MOST_DIGITS, *range(1, MOST_DIGITS)):
        byte = data[ranges.end[long] - back]
        long = long[(byte >= ZERO) & (byte <= NINE)]
    doubtful[long] = True
    return doubtful


def _find_exactly(block: bytes, line_start: int, line_end: int, ranges: _Ranges, i: int) -> bool:
    """Find name and label of one line as Python strips strings, in place; whether the line is not blank."""
    line = block[line_start:line_end].decode("utf-8", "surrogateescape")
    stripped = line.strip()
    name, tab, label = line.rpartition("\t")
    if not tab:
        name, _, label = stripped.rpartition(" ")
        if not (name and WHOLE_NUMBER.fullmatch(label)):
            name, label = stripped, ""
        name = line[: len(line) - len(line.lstrip())] + name
    bounds = [line_start + _size(name) - _size(name.lstrip()), 0, 0, 0]
    bounds[1] = bounds[0] + _size(name.strip())
    rest = line.rstrip()
    bounds[2] = bounds[3] = line_start + _size(rest)
    if label.strip():
        bounds[2] = bounds[3] - _size(label.strip())
    for values, bound in zip(ranges, bounds, strict=True):
        values[i] = bound
    return bool(stripped)


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogateescape"))


def _cut(block: bytes, start: np.ndarray, end: np.ndarray) -> pa.BinaryArray:
    """The bytes of these ranges, which follow one another, as an array of binary."""
    # As offsets, starts and ends by turns make an array of what is wanted and, between, of what is not.
    offsets = np.stack([start, end], axis=1).astype(np.int32).reshape(-1)
    turns = pa.Array.from_buffers(
        pa.binary(), max(0, len(offsets) - 1), [None, pa.py_buffer(offsets), pa.py_buffer(block)]
    )
    return turns.take(pa.array(np.arange(0, len(offsets), 2)))
