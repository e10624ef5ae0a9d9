"""The cache of decoded images: a selection of images that has been decoded once is mapped by whoever opens it again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hpt_mlflow.data.cache import cache_folder, check_room, keep_json, limit, locked, read_json
from hpt_mlflow.data.dataset import MOST, Dataset, evenly_spaced
from hpt_mlflow.data.decode import Encoded, conversion
from hpt_mlflow.data.names import Files
from hpt_mlflow.data.packed import MAGIC, DecodedFile, Packed, TooLargeError, write_packed
from hpt_mlflow.data.shards import Members

# Of more than `MOST` images, only what a sample of them showed is kept, known by this many of their contents.
SAMPLED = 10_000
# How many pictures are looked at for whether they need decoding.
LOOKED_AT = 100


@dataclass(frozen=True)
class Measured:
    """What is remembered of images that do not fit: their size in bytes, and which of a sample are unreadable."""

    size: float
    unreadable: dict[int, str]


class DecodedCache:
    """Where the decoded images of one selection are kept between runs.

    Nothing is kept, and no error raised, where pictures need no decoding or the folder cannot be written.
    """

    def __init__(self, dataset: Dataset, indices: np.ndarray, smallest_side: int, most_bytes: float) -> None:
        """
        Args:
            indices: int64, which images, ascending.
            smallest_side: what their shorter side is reduced to.
            most_bytes: what the decoded images of all selections may take together; 0 for no cache.
        """
        self.most_bytes = most_bytes
        self._folder = cache_folder() / "decoded"
        self._key = _key(dataset, indices, smallest_side) if most_bytes > 0 else None
        self._whole = len(indices) <= MOST
        self._path = self._folder / f"{self._key}.images"
        self._note = self._folder / f"{self._key}.json"

    def read(self) -> Packed | None:
        """The images, or None where they are not there."""
        packed = DecodedFile(self._path, self._key).map() if self._key and self._whole else None
        if packed is not None:
            with suppress(OSError):  # a folder of others, that may only be read
                os.utime(self._path)
        return packed

    def measured(self) -> Measured | None:
        """What is remembered of images that did not fit; None where they may fit now."""
        measured = read_json(self._note, _parse_measured) if self._key else None
        if measured is None or measured.size <= self.most_bytes:
            return None
        with suppress(OSError):
            os.utime(self._note)
        return measured

    def remember(self, measured: Measured) -> None:
        """Spare the next one to decode a sample of what does not fit."""
        if self._key and measured.size > self.most_bytes:
            keep_json(self._note, asdict(measured))

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until no other process decodes the same images, so that none does twice what one can do for all."""
        # All selections share a few locks: none can be removed, as somebody may wait for it.
        lock = locked(self._folder / "locks" / f"{self._key[:2]}.lock") if self._key else None
        if lock is None:
            self._key = None
            yield
            return
        try:
            # Who wrote to it was killed, or would hold the lock.
            for left in self._folder.glob(f".*.{self._path.name}"):
                with suppress(OSError):
                    left.unlink()
            yield
        finally:
            lock.release()

    def write(self, images: Iterable[tuple[int, np.ndarray | str]], expected_bytes: float) -> Packed | float:
        """Write the images to a file as they come, and map it.

        Args:
            images: index, and image or why there is none; indices ascend.
            expected_bytes: about how large all of them are.

        Returns:
            The images; or, where they cannot be kept, how large they are as far as is known. Not all have come then.
        """
        if not self._key or not self._whole or expected_bytes > self.most_bytes:
            return expected_bytes
        # They would go in any case, and on a small disk theirs is the room that there is.
        limit(self._folder, self.most_bytes - expected_bytes)
        try:
            check_room(self._folder, expected_bytes)
            write_packed(self._path, self._key, images, self.most_bytes)
        except TooLargeError:
            return max(expected_bytes, self.most_bytes + 1)
        except OSError:
            return expected_bytes
        packed = self.read()
        limit(self._folder, self.most_bytes)
        return expected_bytes if packed is None else packed


def _parse_measured(note: Any) -> Measured:
    return Measured(float(note["size"]), {int(i): str(reason) for i, reason in note["unreadable"].items()})


def _key(dataset: Dataset, indices: np.ndarray, smallest_side: int) -> str | None:
    """What tells these images from any others, 32 hexadecimal digits; None where they need no decoding."""
    if not all(_is_encoded(dataset.pictures, i) for i in evenly_spaced(indices, LOOKED_AT).tolist()):
        return None
    digest = hashlib.sha256(f"{MAGIC!r} {conversion()} {smallest_side}\n".encode())
    digest.update(np.ascontiguousarray(indices).data)
    compared = indices if len(indices) <= MOST else evenly_spaced(indices, SAMPLED)
    digest.update(dataset.contents.of(compared).data)
    return digest.hexdigest()[:32]


def _is_encoded(pictures: Sequence[Encoded], index: int) -> bool:
    """Whether a picture is a file, or the bytes of one."""
    if isinstance(pictures, Files | Members):
        return True
    path = getattr(pictures, "path", None)
    return path(index) is not None if path else isinstance(pictures[index], bytes | str | os.PathLike)
