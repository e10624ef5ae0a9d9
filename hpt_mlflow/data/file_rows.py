"""Pictures that are files of a folder: one each, several in a file, or one in several files."""

from __future__ import annotations

import hashlib
import os
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from hpt_mlflow.data.names import Names, Row
from hpt_mlflow.data.pictures import Encoded, Frame, Stack

T = TypeVar("T")


class FileRow(Row[T]):
    """N pictures, each named when it is read; an absolute name is a path by itself."""

    def __init__(self, folder: Path | str) -> None:
        # Absolute, so that it stays the same folder if the working directory changes.
        self.folder = os.path.abspath(folder)

    @abstractmethod
    def paths(self, i: int) -> tuple[str, ...]:
        """The files of the picture at a position; text is quicker to make than a Path."""

    def add_to(self, digest: hashlib._Hash) -> None:
        """Add to a digest which pictures these are, but not what is in them."""
        digest.update(self.folder.encode(errors="surrogateescape"))


class Files(FileRow[Path]):
    """The files of these names in a folder."""

    def __init__(self, folder: Path | str, names: Names) -> None:
        super().__init__(folder)
        self.names = names

    def __len__(self) -> int:
        return len(self.names)

    def _value(self, i: int) -> Path:
        return Path(self.path(i))

    def path(self, i: int) -> str:
        """The file at a position."""
        return os.path.join(self.folder, self.names[i])

    def paths(self, i: int) -> tuple[str, ...]:
        """The file at a position alone."""
        return (self.path(i),)

    def add_to(self, digest: hashlib._Hash) -> None:
        """Add the folder and all names."""
        super().add_to(digest)
        add_names(digest, self.names)

    def __iter__(self) -> Iterator[Path]:
        return (Path(os.path.join(self.folder, name)) for name in self.names)


class FramedFiles(Files):
    """Files of which some are named several times, for each of their images.

    Attributes:
        numbers: which image of its file each is, int32 (N,); -1 for the only one.
    """

    def __init__(self, folder: Path | str, names: Names, numbers: np.ndarray) -> None:
        super().__init__(folder, names)
        self.numbers = numbers

    def _value(self, i: int) -> Encoded:  # type: ignore[override]
        file, number = Path(self.path(i)), int(self.numbers[i])
        return file if number < 0 else Frame(file, number)

    def add_to(self, digest: hashlib._Hash) -> None:
        """Add the folder, all names, and all numbers."""
        super().add_to(digest)
        digest.update(self.numbers.astype("<i4").tobytes())

    def __iter__(self):  # type: ignore[no-untyped-def]
        return (self._value(i) for i in range(len(self)))


class StackedFiles(FileRow[Stack]):
    """A picture for each row of names of files, one per band."""

    def __init__(self, folder: Path | str, rows: Sequence[tuple[str, ...]]) -> None:
        super().__init__(folder)
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def _value(self, i: int) -> Stack:
        return Stack(tuple(map(Path, self.paths(i))))

    def paths(self, i: int) -> tuple[str, ...]:
        """The files of the bands."""
        return tuple(os.path.join(self.folder, name) for name in self.rows[i])

    def add_to(self, digest: hashlib._Hash) -> None:
        """Add the folder, the names of all rows, and how many rows there are."""
        super().add_to(digest)
        add_names(digest, [name for row in self.rows for name in row])
        digest.update(f"\0{len(self.rows)}".encode())


def add_names(digest: hashlib._Hash, names: Sequence[str]) -> None:
    """Add all names and where each ends. The number of chunks that they are packed into makes no difference."""
    ends = hashlib.sha256()
    before = 0
    for prefix, data, chunk_ends in Names.of(names).buffers():
        digest.update(data)
        ends.update(f"{prefix}\0".encode(errors="surrogateescape") if prefix else b"")
        ends.update((chunk_ends.astype("<i8") + before).data)
        before += len(data)
    digest.update(ends.digest())
