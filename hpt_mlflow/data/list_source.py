"""`list:FILE`: a text file with one image a line, read in blocks, so that 14 million lines take seconds."""

from __future__ import annotations

import io
import os
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from hpt_mlflow.data.account import LeftOut
from hpt_mlflow.data.dataset import MOST, Dataset
from hpt_mlflow.data.labels import WHOLE_NUMBER, LabelColumn
from hpt_mlflow.data.names import Files, Names
from hpt_mlflow.data.paths import name_in, resolve_path
from hpt_mlflow.errors import HptError, printable

BLOCK_BYTES = 1 << 24
# What has no lines is no list.
LONGEST_LINE = 1 << 24
EXAMPLES = 5
NEWLINE, TAB, SPACE, MINUS, ZERO, NINE = b"\n\t -09"
# Longer runs of digits are left to Python, since a step is taken for each digit.
MOST_DIGITS = 20
# First bytes of characters that Python takes for blanks beside ASCII's: U+0085, U+00A0, U+1680, U+2000 to U+3000.
MAY_BE_BLANK = np.array([0xC2, 0xE1, 0xE2, 0xE3], np.uint8)


def open_list(path: str, root: str | None) -> Dataset:
    """A text file with one image a line: `PATH`, `PATH LABEL` with a whole number, or `PATH<tab>LABEL` with any text.

    Relative paths start from `root`, or from the folder of the list where there is no root. The list is UTF-8, or
    UTF-16 with a byte order mark. Lines that name the same file are one image, in a list of at most `MOST` lines.

    Raises:
        HptError: there is no such file, it names no images, it has labels for some lines only, or for one image two.
    """
    file = resolve_path(path, root)
    shown = printable(str(file))
    if not os.path.isfile(file):
        raise HptError(f"data: there is no list file {shown}")
    folder = os.path.expanduser(root) if root else file.parent
    chunks: list[pa.BinaryArray] = []
    hashes: list[np.ndarray] = []
    count = 0
    column = LabelColumn()
    try:
        for block in _blocks(file, shown):
            names, labels = _read_block(block)
            if b"\\" in block:
                named = Names([names])
                names = pa.array(
                    [name_in(folder, name).encode("utf-8", "surrogateescape") for name in named], pa.binary()
                )
            if len(names):
                chunks.append(names)
                # Of more lines, looking for repeated ones takes a minute; see `Dataset.compared`.
                count += len(names)
                if count <= MOST:
                    hashes.append(_hashes(names, b"./" in block or b"//" in block))
                column.add(labels)
    except OSError as error:
        raise HptError(f"data: cannot read the list {shown}: {error.strerror}") from error
    except UnicodeError as error:
        raise HptError(f"data: the list {shown} is not UTF-16 throughout; save it as UTF-8") from error
    if not chunks:
        raise HptError(f"data: the list {shown} names no images")
    packed = Names(chunks)
    numbers, classes = column.numbered(packed, shown)
    later, first = _repeats(packed, hashes if count <= MOST else [np.array([], np.int64)])
    left_out: tuple[LeftOut, ...] = ()
    if len(later):
        if numbers is not None:
            _check_labels_agree(packed, numbers, classes, later, first, shown)
            numbers = np.delete(numbers, later)
        examples = tuple(dict.fromkeys(printable(packed[i]) for i in first[:1000].tolist()))[:EXAMPLES]
        left_out = (LeftOut("lines that repeat an image", len(later), examples, "each image counts once"),)
        del packed
        packed = Names(_without(chunks, later))
    return Dataset(
        name=printable(file.stem),
        uri=f"list:{file.resolve()}",
        pictures=Files(folder, packed),
        names=packed,
        labels=numbers,
        classes=classes,
        left_out=left_out,
    )


def _place(name: bytes) -> bytes:
    """The path of an image, the same for `a/b`, `./a/b` and `a//b`."""
    return os.path.normpath(name) if b"./" in name or b"//" in name else name


def _hashes(names: pa.BinaryArray, odd: bool) -> np.ndarray:
    """A number for each path, int64 (n,); `odd` is whether some may be written in several ways."""
    places = map(_place, names.to_pylist()) if odd else names.to_pylist()
    return np.fromiter(map(hash, places), np.int64, len(names))


def _repeats(names: Names, hashes: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the names that are not there for the first time, ascending, and of where they are, int64 (R,) each.

    Args:
        hashes: of the paths in their order, int64 (n,) each, so that only names with equal ones have to be compared.
    """
    ordered = np.concatenate(hashes)
    ordered.sort()
    again = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    del ordered
    first: dict[bytes, int] = {}
    repeats: list[tuple[int, int]] = []
    start = 0
    for some in hashes if len(again) else []:
        nearest = again[np.minimum(np.searchsorted(again, some), len(again) - 1)]
        for i in (np.flatnonzero(nearest == some) + start).tolist():
            earlier = first.setdefault(_place(names[i].encode("utf-8", "surrogateescape")), i)
            if earlier != i:
                repeats.append((i, earlier))
        start += len(some)
    later, earliest = np.array(repeats, np.int64).reshape(-1, 2).T
    return later, earliest


def _without(chunks: list[pa.BinaryArray], positions: np.ndarray) -> list[pa.BinaryArray]:
    """The chunks without the names at these positions; each is replaced at once, as two of all take too much room."""
    start = 0
    for k, chunk in enumerate(chunks):
        kept = np.ones(len(chunk), bool)
        kept[positions[slice(*np.searchsorted(positions, [start, start + len(chunk)]))] - start] = False
        start += len(chunk)
        if not kept.all():
            chunks[k] = chunk.filter(pa.array(kept))
    return chunks


def _check_labels_agree(
    names: Names, labels: np.ndarray, classes: tuple[str, ...], later: np.ndarray, first: np.ndarray, shown: str
) -> None:
    differ = np.flatnonzero(labels[later] != labels[first])
    if len(differ):
        one, other = (classes[labels[lines[differ[0]]]] for lines in (first, later))
        raise HptError(
            f"data: the list {shown} names the image {names[first[differ[0]]]!r} with the labels {one!r} and "
            f"{other!r}; make its lines agree, or use csv: with a column of 1 and 0 for each label"
        )


def _blocks(file: Path, shown: str) -> Iterator[bytes]:
    """The file in pieces of whole lines, each of which ends with a newline, whatever the system it was written on."""
    with open(file, "rb") as opened:
        mark = opened.read(len(BOM_UTF8))
        wide = mark.startswith((BOM_UTF16_LE, BOM_UTF16_BE))
        opened.seek(0 if wide or mark != BOM_UTF8 else len(mark))
        recoded = io.TextIOWrapper(opened, "utf-16", newline="") if wide else None
        rest = b""
        while block := recoded.read(BLOCK_BYTES).encode() if recoded else opened.read(BLOCK_BYTES):
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
