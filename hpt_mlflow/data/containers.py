"""Files that hold many pictures, such as tars, zips and tables: which ones an address names, and reading from them."""

from __future__ import annotations

import glob
import os
import re
import stat
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from hpt_mlflow.data.errors import UnreadableImageError, data_error
from hpt_mlflow.data.names import Row
from hpt_mlflow.data.paths import resolve_path
from hpt_mlflow.data.pictures import MOST_BYTES
from hpt_mlflow.errors import one_line, printable

BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"(\d+)\.\.(\d+)")
# Addresses that other tools open by running a program or over a network.
REMOTE = re.compile(r"(pipe|https?|s3|gs|gcs|hdfs|hf|ftp|file|ais|az):", re.IGNORECASE)
MOST_FILES = 1_000_000


class Stamp(NamedTuple):
    """A file as it was when it was opened first: its size in bytes, and when it was changed, in nanoseconds."""

    size: int
    time: int

    @classmethod
    def of(cls, file: Path, suffix: str) -> Stamp:
        """
        Raises:
            HptError: it is not a regular file.
            OSError: there is none.
        """
        status = os.stat(file)
        # Opening a FIFO would wait forever.
        if not stat.S_ISREG(status.st_mode):
            raise data_error(f"{printable(str(file))} is not a regular file", f"name a {suffix} file")
        return cls(status.st_size, status.st_mtime_ns)


class Contained(Row[bytes]):
    """Encoded pictures in larger files, each read when it is needed. Threads and forked workers may share it.

    Attributes:
        files: their absolute paths.
    """

    # What one of the files is called in errors.
    noun = "file"

    def __init__(self, files: Sequence[Path], stamps: Sequence[Stamp], numbers: np.ndarray, places: np.ndarray) -> None:
        """
        Args:
            stamps: of each file.
            numbers: of each picture, that of the file it is in, int (N,).
            places: of each picture, where it is in the file, int64 (N,).
        """
        self.files = [os.path.abspath(file) for file in files]
        self._stamps = list(stamps)
        self._numbers = np.asarray(numbers, np.int32)
        self._places = np.asarray(places, np.int64)

    def __len__(self) -> int:
        return len(self._places)

    @abstractmethod
    def _read(self, opened: BinaryIO, number: int, i: int) -> bytes:
        """The encoded picture at a position, in the file of this number."""

    def _value(self, i: int) -> bytes:
        """The encoded picture at a position.

        Raises:
            UnreadableImageError: it is too large, or its file is not as it was when the dataset was opened.
        """
        number = int(self._numbers[i])
        try:
            with open(self.files[number], "rb", buffering=0) as opened:
                status = os.fstat(opened.fileno())
                if (status.st_size, status.st_mtime_ns) != self._stamps[number]:
                    raise UnreadableImageError(f"its {self.noun} has changed since the dataset was opened")
                return self._read(opened, number, i)
        except OSError as error:
            raise UnreadableImageError(
                f"its {self.noun} cannot be read: {error.strerror or one_line(error)}"
            ) from error

    def stamps(self, indices: np.ndarray) -> np.ndarray:
        """What changes when the file of a picture does, int64 (n, 4): size, its two times, and the picture's place."""
        present, of_file = np.unique(self._numbers[indices], return_inverse=True)
        rows = [(*self._stamps[i], _changed_ns(self.files[i])) for i in present]
        return np.column_stack([np.array(rows, np.int64).reshape(-1, 3)[of_file], self._places[indices]])


def check_bytes(size: int) -> None:
    """Refuse an encoded picture of more than `MOST_BYTES`."""
    if size > MOST_BYTES:
        raise UnreadableImageError(f"{size} bytes are too many")


def _changed_ns(file: str) -> int:
    """When a file's content or status last changed."""
    try:
        return os.stat(file).st_ctime_ns
    except OSError:
        return -1


def find_files(address: str, root: str | None, noun: str, inside: Callable[[Path], Sequence[Path]]) -> list[Path]:
    """The files of an address in its order, each once; those of a folder or a pattern sorted by name.

    Args:
        address: a folder, or files with `{000..146}`, `{a,b}`, `*` and `?`; or several of these separated by `::`.
        noun: what such a file is called in errors.
        inside: the files in a folder; raises HptError if there are none.

    Raises:
        HptError: there are none, or too many.
    """
    found: dict[str, Path] = {}
    for part in address.split("::"):
        if REMOTE.match(part):
            raise data_error(f"{part!r} is not a file", f"copy the {noun}s to a disk and name their folder")
        whole = resolve_path(part, root)
        paths = [whole] if os.path.exists(whole) else map(Path, expand(str(whole), noun))
        for path in paths:
            for file in _matches(path, noun, inside):
                found.setdefault(os.path.realpath(file), file)
    return list(found.values())


def absolute(address: str, root: str | None) -> str:
    """The address that opens the same files from anywhere."""
    return "::".join(os.path.abspath(resolve_path(part, root)) for part in address.split("::"))


def common_names(files: Sequence[Path]) -> tuple[str, list[str]]:
    """The innermost folder that all files are in, and their names relative to it."""
    folder = os.path.commonpath([os.path.abspath(file.parent) for file in files])
    return folder, [Path(os.path.relpath(os.path.abspath(file), folder)).as_posix() for file in files]


def _matches(path: Path, noun: str, inside: Callable[[Path], Sequence[Path]]) -> Sequence[Path]:
    """The files in a folder or of a pattern, or the path itself."""
    if os.path.isdir(path):
        return inside(path)
    if os.path.exists(path):
        return [path]
    matching = sorted(map(Path, glob.glob(str(path))))
    if not matching:
        raise data_error(f"there is no {noun} {printable(str(path))}")
    return matching


def with_suffix(folder: Path, suffix: str) -> Iterator[Path]:
    """The visible files in a folder with a suffix, in lower case, sorted by name."""
    for name in sorted(os.listdir(folder)):
        if name[0] != "." and name.lower().endswith(suffix):
            yield folder / name


def expand(pattern: str, noun: str) -> list[str]:
    """The paths that a pattern with `{000..146}` and `{a,b}` means, in the order of a shell."""
    expanded = [""]
    rest = pattern
    while braces := BRACES.search(rest):
        limits = RANGE.fullmatch(braces[1])
        if limits:
            first, last = int(limits[1]), int(limits[2])
            padded = any(text[0] == "0" and len(text) > 1 for text in limits.groups())
            width = max(map(len, limits.groups())) if padded else 0
            step = 1 if first <= last else -1
            choices: list[str] | range = range(first, last + step, step)
        else:
            choices, width = braces[1].split(","), 0
        if len(choices) * len(expanded) > MOST_FILES:
            raise data_error(f"{braces[0]} in {printable(pattern)} means more than {MOST_FILES} {noun}s")
        one = len(choices) == 1 and not limits
        texts = [braces[0]] if one else [str(choice).zfill(width) for choice in choices]
        expanded = [start + rest[: braces.start()] + text for start in expanded for text in texts]
        rest = rest[braces.end() :]
    return [start + rest for start in expanded]
