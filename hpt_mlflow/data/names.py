"""Millions of names: held as bytes in a few buffers instead of one Python object per name.

A Python string of a path takes some 80 bytes, and reading it changes its reference count, so that each worker process
soon has its own copy of what it shares with its parent. Buffers of Arrow are only ever read.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, islice
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

# Names that are Python strings at once while others are packed.
AT_ONCE = 100_000


T = TypeVar("T")


class Row(Sequence[T]):
    """N values, each made when it is read; equal to any sequence of the same values."""

    @abstractmethod
    def _value(self, i: int) -> T:
        """The value at a position from 0 to N - 1."""

    def __getitem__(self, i: Any) -> Any:
        """The value at a position, a Python or numpy integer; or a list of those of a slice."""
        if isinstance(i, slice):
            return [self._value(k) for k in range(*i.indices(len(self)))]
        position = int(i) + len(self) if i < 0 else int(i)
        if not 0 <= position < len(self):
            raise IndexError(f"{i} of {len(self)}")
        return self._value(position)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str | bytes):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        few = ", ".join(map(repr, self[:3]))
        return f"<{len(self)} {type(self).__name__.lower()}: {few}{', ...' if len(self) > 3 else ''}>"


class Names(Row[str]):
    """N strings, packed. Bytes that are not UTF-8 are read as Python reads names of files, with surrogates.

    It pickles as its buffers, a few bytes more than the names themselves.
    """

    def __init__(self, chunks: Iterable[pa.BinaryArray], prefixes: Iterable[str] | None = None) -> None:
        """
        Args:
            chunks: arrays of type binary, whose names follow one another.
            prefixes: what each name of a chunk starts with, one per chunk; nothing if None.
        """
        self._chunks = list(chunks)
        self._prefixes = [""] * len(self._chunks) if prefixes is None else list(prefixes)
        self._starts = [0, *accumulate(map(len, self._chunks))]

    @classmethod
    def of(cls, names: Iterable[str]) -> Names:
        """Pack names. They may come from a generator; at most `AT_ONCE` of them are held as strings."""
        if isinstance(names, Names):
            return names
        chunks: list[pa.BinaryArray] = []
        rest = iter(names)
        while some := [name.encode("utf-8", "surrogateescape") for name in islice(rest, AT_ONCE)]:
            packed = pa.array(some, pa.binary())
            # Arrow itself makes several chunks of more than 2 GiB.
            chunks.extend(packed.chunks if isinstance(packed, pa.ChunkedArray) else [packed])
        return cls(chunks)

    def __len__(self) -> int:
        return self._starts[-1]

    def _value(self, i: int) -> str:
        chunk = bisect_right(self._starts, i) - 1
        return self._prefixes[chunk] + _text(self._chunks[chunk][i - self._starts[chunk]].as_py())

    def __iter__(self) -> Iterator[str]:
        for chunk, prefix in zip(self._chunks, self._prefixes, strict=True):
            for start in range(0, len(chunk), AT_ONCE):
                for name in chunk.slice(start, AT_ONCE).to_pylist():
                    yield prefix + _text(name)

    def matching(self, pattern: re.Pattern[str]) -> np.ndarray:
        """Positions of the names that a pattern is found in, int64, ascending; prefixes do not count."""
        found = [
            np.flatnonzero(pc.match_substring_regex(chunk, pattern.pattern).to_numpy(zero_copy_only=False)) + start
            for chunk, start in zip(self._chunks, self._starts, strict=False)
        ]
        return np.concatenate([np.array([], np.int64), *found]).astype(np.int64)

    def buffers(self) -> Iterator[tuple[str, memoryview, np.ndarray]]:
        """Per chunk: its prefix, the bytes of its names in a row, and where each ends in them, int32 (n,)."""
        for chunk, prefix in zip(self._chunks, self._prefixes, strict=True):
            if not len(chunk):
                continue
            _, offsets, data = chunk.buffers()
            ends = np.frombuffer(offsets, np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
            whole = memoryview(data) if data is not None else memoryview(b"")
            yield prefix, whole[ends[0] : ends[-1]], ends[1:] - ends[0]


class NumberedNames(Row[str]):
    """`PREFIX/0`, `PREFIX/1`, ..., or just the numbers without a prefix; none is stored."""

    def __init__(self, count: int, prefix: str = "") -> None:
        self._count, self._prefix = count, f"{prefix}/" if prefix else ""

    def __len__(self) -> int:
        return self._count

    def _value(self, i: int) -> str:
        return f"{self._prefix}{i}"


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
