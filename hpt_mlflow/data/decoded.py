"""The cache of decoded images: a selection of images that has been decoded once is mapped by whoever opens it again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress

import numpy as np

from hpt_mlflow.data.cache import cache_folder, check_room, limit, locked
from hpt_mlflow.data.containers import Contained
from hpt_mlflow.data.dataset import MOST, Dataset, evenly_spaced
from hpt_mlflow.data.decode import conversion
from hpt_mlflow.data.errors import UnreadableImageError
from hpt_mlflow.data.file_rows import Files
from hpt_mlflow.data.packed import MAGIC, DecodedFile, Packed, write_packed
from hpt_mlflow.data.pictures import Encoded, Stack
from hpt_mlflow.pixels import PixelFormat

# How many pictures are looked at for whether they need decoding.
LOOKED_AT = 100


class DecodedCache:
    """Where the decoded images of one selection are kept between runs.

    Nothing is kept, and no error raised, where pictures need no decoding or the folder cannot be written.
    """

    def __init__(
        self, dataset: Dataset, indices: np.ndarray, smallest_side: int, pixels: PixelFormat, most_bytes: float
    ) -> None:
        """
        Args:
            indices: int64, which images, ascending.
            smallest_side: what their shorter side is reduced to.
            most_bytes: what the decoded images of all selections may take together; 0 for no cache.
        """
        self.most_bytes = most_bytes
        self._folder = cache_folder() / "decoded"
        # The contents of more are not all known.
        wanted = most_bytes > 0 and len(indices) <= MOST
        self._key = _key(dataset, indices, smallest_side, pixels) if wanted else None
        self._path = self._folder / f"{self._key}.images"

    def read(self) -> Packed | None:
        """The images, or None where they are not there."""
        packed = DecodedFile(self._path, self._key).map() if self._key else None
        if packed is not None:
            with suppress(OSError):  # a folder of others, that may only be read
                os.utime(self._path)
        return packed

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

    def write(self, images: Iterable[tuple[int, np.ndarray | str]], expected_bytes: float) -> Packed | None:
        """Write the images to a file as they come, and map it.

        Args:
            images: index, and image or why there is none; indices ascend.
            expected_bytes: about how large all of them are.

        Returns:
            The images, or None where they cannot be kept. Not all have come then.
        """
        if not self._key or expected_bytes > self.most_bytes:
            return None
        # They would go in any case, and on a small disk theirs is the room that there is.
        limit(self._folder, self.most_bytes - expected_bytes)
        try:
            check_room(self._folder, expected_bytes)
            write_packed(self._path, self._key, images)
        except OSError:
            return None
        packed = self.read()
        limit(self._folder, self.most_bytes)
        return packed


def _key(dataset: Dataset, indices: np.ndarray, smallest_side: int, pixels: PixelFormat) -> str | None:
    """What tells these images from any others, 32 hexadecimal digits; None where they need no decoding."""
    if not _are_encoded(dataset.pictures, evenly_spaced(indices, LOOKED_AT)):
        return None
    digest = hashlib.sha256(f"{MAGIC!r} {conversion()} {smallest_side} {pixels!r}\n".encode())
    digest.update(np.ascontiguousarray(indices).data)
    digest.update(dataset.contents.of(indices).data)
    return digest.hexdigest()[:32]


def _are_encoded(pictures: Sequence[Encoded], indices: np.ndarray) -> bool:
    """Whether these pictures are files, or the bytes of files."""
    if isinstance(pictures, Files | Contained):
        return True
    try:
        return all(isinstance(pictures[i], bytes | str | os.PathLike | Stack) for i in indices.tolist())
    except UnreadableImageError:
        return False
