"""Decoded images of a dataset: decoded once and kept if they fit, or else decoded each time they are needed."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from hpt_mlflow.cores import available_cores
from hpt_mlflow.data.dataset import Dataset, evenly_spaced
from hpt_mlflow.data.decode import decode
from hpt_mlflow.data.decoded import DecodedCache
from hpt_mlflow.data.errors import UnreadableImageError, data_error
from hpt_mlflow.data.packed import DecodedFile, Packed, pack
from hpt_mlflow.data.pixel_range import pixels_of
from hpt_mlflow.data.reading import read_ahead
from hpt_mlflow.pixels import PixelFormat

MEMORY_LIMIT_BYTES = 1 << 30
SAMPLE_SIZE = 2048
# Enough to know how much memory images take.
SIZE_SAMPLE = 128
UNREADABLE_LIMIT = 0.01
# Images per thread that are decoded in advance.
AHEAD = 4
# Reasons that come from the system or from a missing package, and not from the image: it may be readable next time.
MENDABLE = re.compile(r"\[(Errno|WinError) |MemoryError|pip install")


class Images:
    """The images of a dataset that a stage uses, as read-only (height, width, channels) of `pixels`.

    Opening decodes all images if they fit into the cache on disk, from which the next process maps them, or else into
    `MEMORY_LIMIT_BYTES`; otherwise an evenly spaced sample, so that unreadable images are known before any long work.
    Worker processes share what is kept.

    Attributes:
        indices: int64, the given indices without those known to be unreadable.
        pixels: what the images are decoded to.
        unreadable: reason by index.
    """

    def __init__(
        self,
        dataset: Dataset,
        indices: np.ndarray,
        smallest_side: int,
        strict: bool = False,
        memory_limit_bytes: int | None = None,
        cache_gib: float = 0.0,
        known_unreadable: Mapping[int, str] | None = None,
        pixels: PixelFormat | None = None,
    ) -> None:
        """
        Args:
            indices: which images of the dataset.
            smallest_side: images are kept reduced so that their shorter side has at most this many pixels.
            strict: refuse any unreadable image instead of up to `UNREADABLE_LIMIT` of them.
            memory_limit_bytes: how much may be kept decoded in memory; `MEMORY_LIMIT_BYTES` if None.
            cache_gib: how much the decoded images of all datasets may take on disk.
            known_unreadable: reason by index, from a process that has opened the same images. It is trusted, so that
                all processes that train together have the same `indices`.
            pixels: what to decode to; None for what suits the dataset (see `pixels_of`).

        Raises:
            HptError: too many images are unreadable.
        """
        self.dataset = dataset
        self.pixels = pixels or pixels_of(dataset)
        self.smallest_side = smallest_side
        self.strict = strict
        self.unreadable: dict[int, str] = dict(known_unreadable or {})
        self.indices = np.asarray(indices, dtype=np.int64)
        self._count = len(indices)
        ordered = self.indices
        if not (ordered[1:] > ordered[:-1]).all():
            ordered = np.unique(ordered)
        self._sampled = evenly_spaced(ordered, SAMPLE_SIZE)
        self._sample: list[np.ndarray] | None = None
        self._packed: Packed | None = None
        limit = MEMORY_LIMIT_BYTES if memory_limit_bytes is None else memory_limit_bytes
        cache = DecodedCache(dataset, ordered, smallest_side, self.pixels, cache_gib * 2**30)
        self._open(ordered, cache, limit, check=known_unreadable is None)
        left_out = self.unreadable if known_unreadable is None else known_unreadable
        if left_out:
            self.indices = self.indices[~np.isin(self.indices, np.fromiter(left_out, np.int64))]
        self.check_unreadable()

    @property
    def in_memory(self) -> bool:
        """Whether all images are decoded, in memory or in a mapped file."""
        return self._packed is not None

    @property
    def packed(self) -> Packed | None:
        """All images, if they are decoded."""
        return self._packed

    @property
    def sample_indices(self) -> np.ndarray:
        """The indices of `sample`, int64, ascending; unreadable images may be among them."""
        return self._sampled if self._packed is None else np.sort(self.indices)

    @property
    def sample(self) -> Sequence[np.ndarray]:
        """Decoded images that represent all, in the order of their indices: all of them, or the sample."""
        if self._packed is not None:
            return self._packed
        if self._sample is None:
            decoded = list(self._decoded(self._sampled))
            self._sample = [image for _, image in decoded if not isinstance(image, str)]
            self.report_unreadable((index, image) for index, image in decoded if isinstance(image, str))
        return self._sample

    def __getitem__(self, index: int) -> np.ndarray:
        """The image at an index into the dataset.

        Raises:
            UnreadableImageError: it cannot be decoded.
        """
        if int(index) in self.unreadable:
            raise UnreadableImageError(self.unreadable[int(index)])
        if self._packed is not None:
            return self._packed.of(int(index))
        return decode(self.dataset.pictures[index], self.smallest_side, self.pixels)

    def report_unreadable(self, found: Iterable[tuple[int, str]]) -> None:
        """Record images that turned out unreadable later, and check that they are not too many."""
        self.unreadable.update(found)
        self.check_unreadable()

    def check_unreadable(self) -> None:
        """Raise HptError if more images are unreadable than allowed."""
        count = len(self.unreadable)
        if count > (0 if self.strict else UNREADABLE_LIMIT * self._count):
            index, reason = next(iter(self.unreadable.items()))
            allowed = "none is allowed with --strict" if self.strict else f"at most {UNREADABLE_LIMIT:.0%} may be"
            raise data_error(
                f"{count} of {self._count} images of {self.dataset.name} are unreadable ({allowed})",
                f"the first is {self.dataset.names[index]!r}: {reason}",
            )

    def __getstate__(self) -> dict[str, Any]:
        """What another process receives: the path of a mapped file instead of its pixels, and no sample."""
        packed = self._packed
        kept = packed.file if packed is not None and packed.file is not None else packed
        return self.__dict__ | {"_packed": kept, "_sample": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        # If another process has removed the file, this one decodes the images that it needs.
        if isinstance(state["_packed"], DecodedFile):
            self._packed = state["_packed"].map()

    def _open(self, ordered: np.ndarray, cache: DecodedCache, memory_limit: float, check: bool) -> None:
        """Find the images in the cache, or keep them there or in memory, or else decode a sample only.

        Args:
            ordered: the indices, ascending.
            check: find out which images of the sample are unreadable.
        """
        packed = self._cached(cache, check)
        if packed is None:
            with cache.alone():
                packed = self._cached(cache, check)
                if packed is None:
                    size = self._expected_bytes(ordered)
                    packed = cache.write(self._decoded(ordered), size)
            if packed is None and size <= memory_limit:
                packed = pack(self._decoded(ordered))
        self._packed = packed
        if packed is not None:
            self.unreadable = packed.unreadable | self.unreadable
        elif check:
            _ = self.sample  # finds its unreadable images

    def _cached(self, cache: DecodedCache, check: bool) -> Packed | None:
        """The images in the cache, unless one that was unreadable is readable now."""
        packed = cache.read()
        if packed is None or not check:
            return packed
        suspects = [index for index, reason in packed.unreadable.items() if MENDABLE.search(reason)]
        return packed if all(isinstance(self._attempt(index), str) for index in suspects) else None

    def _expected_bytes(self, ordered: np.ndarray) -> float:
        """About how many bytes all images take; infinite if none that is looked at is readable."""
        decoded = self._decoded(evenly_spaced(ordered, SIZE_SAMPLE))
        sizes = [image.nbytes for _, image in decoded if not isinstance(image, str)]
        return float(np.mean(sizes)) * len(ordered) if sizes else np.inf

    def _decoded(self, indices: np.ndarray) -> Generator[tuple[int, np.ndarray | str], None, None]:
        """Index and image, or why it is unreadable, in order; only a few in advance, however slow the consumer is."""
        return read_ahead(self._attempt, indices, AHEAD * available_cores())

    def _attempt(self, index: int) -> np.ndarray | str:
        if index in self.unreadable:
            return self.unreadable[index]
        try:
            return decode(self.dataset.pictures[index], self.smallest_side, self.pixels)
        except UnreadableImageError as error:
            return str(error)
