"""Millions of names: held as bytes in a few buffers instead of a Python object each.

A Python string of a path takes some 80 bytes, and its reference count changes when it is read, so that each worker
process soon has a copy of its own of all that it shares with its parent. Buffers of Arrow are only ever read.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

# Names that are Python strings at once while others are packed.
AT_ONCE = 100_000


class Names(Sequence[str]):
    """N strings, packed. Bytes that are no UTF-8 are read as Python reads names of files, with surrogates.

    It pickles as its buffers, some bytes more than the names themselves, and equals any sequence of the same strings.
    """

    def __init__(self, chunks: Iterable[pa.BinaryArray], prefixes: Iterable[str] | None = None) -> None:
        """
        Args:
            chunks: arrays of type binary, whose names follow one another.
            prefixes: what each name of a chunk starts with, one for each chunk; nothing where it is None.
        """
        self._chunks = list(chunks)
        self._prefixes = [""] * len(self._chunks) if prefixes is None else list(prefixes)
        self._starts = [0, *accumulate(map(len, self._chunks))]

    @classmethod
    def of(cls, names: Iterable[str]) -> Names:
        """Pack names. They may come from a generator; no more than `AT_ONCE` of them are held as strings."""
        if isinstance(names, Names):
            return names
        chunks: list[pa.BinaryArray] = []
        rest = iter(names)
        while some := [name.encode("utf-8", "surrogateescape") for name in islice(rest, AT_ONCE)]:
            packed = pa.array(some, pa.binary())
            # Arrow itself makes several of what has more than 2 GiB.
            chunks.extend(packed.chunks if isinstance(packed, pa.ChunkedArray) else [packed])
        return cls(chunks)

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, i: Any) -> Any:
        """The name at a position, a Python or numpy integer; or a list of those of a slice."""
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        i = _position(i, len(self))
        chunk = bisect_right(self._starts, i) - 1
        return self._prefixes[chunk] + _text(self._chunks[chunk][i - self._starts[chunk]].as_py())

    def __iter__(self) -> Iterator[str]:
        for chunk, prefix in zip(self._chunks, self._prefixes, strict=True):
            for start in range(0, len(chunk), AT_ONCE):
                for name in chunk.slice(start, AT_ONCE).to_pylist():
                    yield prefix + _text(name)

    def __eq__(self, other: object) -> bool:
        return _same(self, other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return _shown(self)

    def buffers(self) -> Iterator[tuple[str, memoryview, np.ndarray]]:
        """Of each chunk: its prefix, the bytes of its names in a row, and where each ends in them, int32 (n,)."""
        for chunk, prefix in zip(self._chunks, self._prefixes, strict=True):
            if not len(chunk):
                continue
            _, offsets, data = chunk.buffers()
            ends = np.frombuffer(offsets, np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
            whole = memoryview(data) if data is not None else memoryview(b"")
            yield prefix, whole[ends[0] : ends[-1]], ends[1:] - ends[0]


class NumberedNames(Sequence[str]):
    """`PREFIX/0`, `PREFIX/1`, ..., of which none is kept."""

    def __init__(self, prefix: str, count: int) -> None:
        self._prefix, self._count = prefix, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        return f"{self._prefix}/{_position(i, self._count)}"

    def __eq__(self, other: object) -> bool:
        return _same(self, other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return _shown(self)


class Files(Sequence[Path]):
    """The files of these names in a folder, each made when it is asked for; an absolute name is a path by itself."""

    def __init__(self, folder: Path | str, names: Names) -> None:
        # What is opened here is still there when somebody has changed the working directory.
        self.folder, self.names = os.path.abspath(folder), names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        return Path(self.path(i))

    def path(self, i: int) -> str:
        """The file at a position as text, which is quicker to make."""
        return os.path.join(self.folder, self.names[i])

    def __iter__(self) -> Iterator[Path]:
        return (Path(os.path.join(self.folder, name)) for name in self.names)

    def __eq__(self, other: object) -> bool:
        return _same(self, other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return _shown(self)


def _position(i: Any, count: int) -> int:
    """Counted from the front, as a Python integer.

    Raises:
        IndexError: there is none.
    """
    position = int(i) + count if i < 0 else int(i)
    if not 0 <= position < count:
        raise IndexError(f"{i} of {count}")
    return position


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _same(one: Sequence[Any], other: object) -> bool:
    if not isinstance(other, Sequence) or isinstance(other, str | bytes):
        return NotImplemented
    return len(one) == len(other) and all(a == b for a, b in zip(one, other, strict=True))


def _shown(names: Sequence[Any]) -> str:
    few = ", ".join(map(repr, names[:3]))
    return f"<{len(names)} {type(names).__name__.lower()}: {few}{', ...' if len(names) > 3 else ''}>"
