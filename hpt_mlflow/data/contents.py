"""The content of a picture: a 64-bit hash of all its bytes, which decides whether two pictures are the same.

All bytes count, since uncompressed pictures with similar margins differ only in the middle. A file that was read once
is recognised by its size, times and inode number until one of them changes, as git's index does. Caches, digests,
splits and the guard against testing on training images all use it.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import safetensors
import safetensors.numpy
from tqdm import tqdm

from hpt_mlflow.data.cache import cache_folder, keep, limit
from hpt_mlflow.data.containers import Contained
from hpt_mlflow.data.file_rows import FileRow
from hpt_mlflow.data.pictures import MOST_BYTES, Encoded, Frame, Stack

T = TypeVar("T")

# The content of an image that cannot be read.
UNKNOWN = 0
# Raise it when the hash changes.
VERSION = 2
READ_BYTES = 1 << 20
# Opening a FIFO would wait for a writer.
OPENING = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
THREADS = 16
AT_ONCE = 10_000
# What takes less is done by one thread: Python runs one at a time, and to change takes longer.
ALONE_SECONDS = 50e-6
# Indices that are done in one go, and after which it is measured again.
PIECE = 8
# Of all datasets together; a million files take 48 MB.
KEPT_BYTES = 1 << 30
# A file may change twice within one tick of its clock: younger files are read again the next time ("racy git").
RACY_NS = 2_000_000_000
# Reading that takes longer shows a progress bar.
QUIET_SECONDS = 5.0
NO_STAMP = (-1, 0, 0, 0)
LARGEST = 2**63 - 1


class Contents:
    """The contents of pictures, read when they are first needed."""

    def __init__(self, pictures: Sequence[Encoded]) -> None:
        self._pictures = pictures
        # Positions, ascending, and what is there: replaced together, so that threads may share them.
        self._known = (np.array([], np.int64), np.array([], np.int64))

    def of(self, indices: np.ndarray) -> np.ndarray:
        """64 bits of the content of each picture, int64 (n,); `UNKNOWN` where it cannot be read.

        Two pictures have the same number if their files, bytes or pixels are the same. The probability that any two of
        14 million different pictures have the same number is 1 in 190,000.

        Args:
            indices: int64 (n,), positions in any order.
        """
        missing = _missing(indices, self._known[0])
        if len(missing):
            values = read_once(self._pictures, missing, _content, "contents", "reading images once")
            at, known = np.concatenate([self._known[0], missing]), np.concatenate([self._known[1], values])
            order = np.argsort(at)
            self._known = (at[order], known[order])
        at, known = self._known
        return known[np.searchsorted(at, indices)]


def _missing(indices: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Those of some positions that are not among the known ones, ascending; of millions, much sooner than by sets.

    Args:
        known: ascending.
    """
    place = np.searchsorted(known, indices)
    is_known = place < len(known)
    is_known[is_known] = known[place[is_known]] == indices[is_known]
    missing = np.sort(indices[~is_known])
    return missing[np.diff(missing, prepend=missing[:1] - 1) > 0]


def read_once(
    pictures: Sequence[Encoded], indices: np.ndarray, read: Callable[[Any, int], int], kind: str, shown: str
) -> np.ndarray:
    """What is read from these pictures, int64 (n,), from the cached index if their stamps are still the same.

    Args:
        indices: int64 (n,), which pictures.
        read: gives the value of a picture at a position; `UNKNOWN` if it cannot be read, which is not cached.
        kind: names the index.
        shown: what is done, for the progress bar.
    """
    started = time.time_ns()
    index = _Index(pictures, kind)
    with ThreadPoolExecutor(THREADS) as pool:
        stamps = _stamps(pictures, indices, pool)
        values, known = index.look_up(indices, stamps)
        unread = np.flatnonzero(~known)
        options = {"desc": shown, "unit": " images", "delay": QUIET_SECONDS, "leave": False}
        with tqdm(total=len(unread), **options) as bar:
            for some in np.split(unread, range(AT_ONCE, len(unread), AT_ONCE)):
                values[some] = _of_each(lambda i: read(pictures, i), indices[some], pool)
                bar.update(len(some))
    settled = unread[stamps[unread, 1:3].max(axis=1, initial=0) < started - RACY_NS]
    # Unreadable pictures may be readable the next time.
    settled = settled[(stamps[settled, 0] >= 0) & (values[settled] != UNKNOWN)]
    index.add(indices[settled], stamps[settled], values[settled])
    return values


def _content(pictures: Sequence[Encoded], index: int) -> int:
    digest = hashlib.blake2b(digest_size=8)
    try:
        picture = pictures[index]
        if isinstance(picture, Path):
            _add_file(digest, picture)
        elif isinstance(picture, Frame):
            digest.update(_whole_file(picture.file, *_changes(picture.file)) + picture.number.to_bytes(4, "little"))
        elif isinstance(picture, Stack):
            for file in picture.files:
                digest.update(_whole_file(file, *_changes(file)))
        elif isinstance(picture, bytes):
            digest.update(picture)
        else:
            pixels = np.ascontiguousarray(picture)
            digest.update(f"{pixels.dtype}{pixels.shape}".encode())
            digest.update(pixels.tobytes())
    # Damaged data may raise almost anything.
    except Exception:
        return UNKNOWN
    return int.from_bytes(digest.digest(), "little", signed=True) or 1


@lru_cache(maxsize=1024)
def _whole_file(file: Path, size: int, time: int) -> bytes:
    """The digest of a file of several images, which is read once for all of them."""
    digest = hashlib.blake2b(digest_size=16)
    _add_file(digest, file)
    return digest.digest()


def _changes(file: Path) -> tuple[int, int]:
    status = os.stat(file)
    return status.st_size, status.st_mtime_ns


def _add_file(digest: hashlib.blake2b, file: Path) -> None:
    """Add a regular file that is not too large to be decoded."""
    opened = os.open(file, OPENING)
    try:
        status = os.fstat(opened)
        if not stat.S_ISREG(status.st_mode) or status.st_size > MOST_BYTES:
            raise OSError("not a file of an image")
        # To set aside a megabyte takes longer than to read a small file.
        while block := os.read(opened, min(READ_BYTES, status.st_size + 1)):
            digest.update(block)
    finally:
        os.close(opened)


def _stamps(pictures: Sequence[Encoded], indices: np.ndarray, pool: ThreadPoolExecutor) -> np.ndarray:
    """What changes when a file does, int64 (n, 4): size, times of content and status, and inode number or offset."""
    if isinstance(pictures, Contained):
        return pictures.stamps(indices)
    some = np.split(indices, range(AT_ONCE, len(indices), AT_ONCE))
    return np.concatenate(
        [np.array(_of_each(lambda i: _stamp(pictures, i), part, pool)).reshape(-1, 4) for part in some]
    )


def _of_each(function: Callable[[int], T], indices: np.ndarray, pool: ThreadPoolExecutor) -> list[T]:
    """A function of each index: by one thread as long as it is quick, the rest by several."""
    pieces = [indices[start : start + PIECE].tolist() for start in range(0, len(indices), PIECE)]
    done: list[T] = []
    for number, piece in enumerate(pieces, start=1):
        started = time.perf_counter()
        done += [function(i) for i in piece]
        if time.perf_counter() - started > ALONE_SECONDS * len(piece):
            by_threads = pool.map(lambda piece: [function(i) for i in piece], pieces[number:])
            return done + [value for values in by_threads for value in values]
    return done


def _stamp(pictures: Sequence[Encoded], index: int) -> tuple[int, int, int, int]:
    try:
        if isinstance(pictures, FileRow):
            stamps = [_stamp_of(os.stat(path)) for path in pictures.paths(index)]
        # What reads its pictures from elsewhere says so by a `path` of None, and is not read for nothing.
        elif isinstance(path := getattr(pictures, "path", pictures.__getitem__)(index), Path):
            stamps = [_stamp_of(os.stat(path))]
        else:
            return NO_STAMP
    except Exception:  # it is missing, its name is impossible, or it is damaged
        return NO_STAMP
    if len(stamps) == 1:
        return stamps[0]
    # Whatever changes a file sets the time of its status to now, which is later than all others.
    sizes, modified, changed, inodes = zip(*stamps, strict=True)
    return sum(sizes), max(modified), max(changed), hash(inodes) & LARGEST


def _stamp_of(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino & LARGEST


class _Index:
    """What was read of these pictures before, in a cached file."""

    def __init__(self, pictures: Sequence[Encoded], kind: str) -> None:
        self._file = cache_folder() / kind / f"{_key(pictures)}.safetensors"
        self._tables = {
            "at": np.array([], np.int64),
            "stamps": np.empty((0, 4), np.int64),
            "contents": np.array([], np.int64),
        }
        # If it is damaged, pictures are read again.
        with suppress(OSError, KeyError, ValueError, safetensors.SafetensorError):
            tables = safetensors.numpy.load_file(self._file)
            shapes = [tables[name].shape for name in ("at", "stamps", "contents")]
            if shapes == [(len(tables["at"]),), (len(tables["at"]), 4), (len(tables["at"]),)]:
                self._tables = tables
                os.utime(self._file)

    def look_up(self, indices: np.ndarray, stamps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Contents, int64 (n,), and which of them are known, bool (n,)."""
        at = self._tables["at"]
        values = np.full(len(indices), UNKNOWN, np.int64)
        if not len(at):
            return values, np.zeros(len(indices), bool)
        place = np.minimum(np.searchsorted(at, indices), len(at) - 1)
        known = (at[place] == indices) & (self._tables["stamps"][place] == stamps).all(axis=1) & (stamps[:, 0] >= 0)
        values[known] = self._tables["contents"][place[known]]
        return values, known

    def add(self, indices: np.ndarray, stamps: np.ndarray, contents: np.ndarray) -> None:
        """Cache what was read, in place of earlier contents of these pictures."""
        if not len(indices):
            return
        others = ~np.isin(self._tables["at"], indices)
        new = {"at": indices, "stamps": stamps, "contents": contents}
        joined = {name: np.concatenate([self._tables[name][others], new[name]]) for name in new}
        order = np.argsort(joined["at"])
        tables = {name: np.ascontiguousarray(table[order].astype(np.int64)) for name, table in joined.items()}
        keep(self._file, lambda opened: safetensors.numpy.save_file(tables, opened))
        limit(self._file.parent, KEPT_BYTES)


def _key(pictures: Sequence[Encoded]) -> str:
    """A key of the files of these pictures, 32 hexadecimal digits."""
    digest = hashlib.sha256(f"{VERSION}\n".encode())
    if isinstance(pictures, Contained):
        digest.update("\0".join(pictures.files).encode(errors="surrogateescape"))
    elif isinstance(pictures, FileRow):
        pictures.add_to(digest)
    else:
        paths = (picture for picture in pictures if isinstance(picture, Path)) if isinstance(pictures, list) else ()
        digest.update("\0".join(map(os.path.abspath, paths)).encode(errors="surrogateescape"))
    return digest.hexdigest()[:32]
