"""Decoded images of a dataset: decoded once and kept where they fit, decoded again where they do not."""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Any

import numpy as np

from hpt_mlflow.data.dataset import Dataset, evenly_spaced
from hpt_mlflow.data.decode import UnreadableImageError, decode
from hpt_mlflow.data.decoded import DecodedCache, Measured
from hpt_mlflow.data.packed import DecodedFile, Packed, pack
from hpt_mlflow.errors import HptError

MEMORY_LIMIT_BYTES = 1 << 30
SAMPLE_SIZE = 2048
# Enough to know how much memory images take, where nobody asks which are unreadable.
SIZE_SAMPLE = 128
UNREADABLE_LIMIT = 0.01
# Images that are decoded before they are asked for, for each thread.
AHEAD = 4
# Reasons that lie in the system and not in the image, which may be readable the next time.
MENDABLE = re.compile(r"\[(Errno|WinError) |MemoryError")


class Images:
    """The images of a dataset that a stage uses, as read-only uint8 (height, width, 3).

    Opening them decodes all that fit into the cache on the disk, from which the next one maps them, or else into
    `MEMORY_LIMIT_BYTES`, or else an evenly spaced sample, so that unreadable images are known before any long work.
    Worker processes share what is kept. Where many images do not fit, no list of them is made.

    Attributes:
        indices: int64, the readable ones of the indices asked for (of a sample: all that were not found unreadable;
            by another's word: all that it did not find unreadable).
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
    ) -> None:
        """
        Args:
            indices: which images of the dataset.
            smallest_side: images are kept reduced so that their shorter side has at most so many pixels.
            strict: refuse any unreadable image instead of up to `UNREADABLE_LIMIT` of them.
            memory_limit_bytes: how much may be kept decoded in memory; `MEMORY_LIMIT_BYTES` where it is None.
            cache_gib: how much all decoded images on the disk may take, these and those of other datasets.
            known_unreadable: reason by index, from a process that has opened the same images. Its word is taken, so
                that all who train together have the same `indices`.

        Raises:
            HptError: too many images are unreadable.
        """
        self.dataset = dataset
        self.smallest_side = smallest_side
        self.strict = strict
        self.unreadable: dict[int, str] = dict(known_unreadable or {})
        self.indices = np.asarray(indices, dtype=np.int64)
        self._asked = len(indices)
        ordered = self.indices
        if not (ordered[1:] > ordered[:-1]).all():
            ordered = np.unique(ordered)
        self._sampled = evenly_spaced(ordered, SAMPLE_SIZE)
        self._sample: list[np.ndarray] | None = None
        self._packed: Packed | None = None
        limit = MEMORY_LIMIT_BYTES if memory_limit_bytes is None else memory_limit_bytes
        cache = DecodedCache(dataset, ordered, smallest_side, cache_gib * 2**30)
        self._open(ordered, cache, limit, check=known_unreadable is None)
        left_out = self.unreadable if known_unreadable is None else known_unreadable
        if left_out:
            self.indices = self.indices[~np.isin(self.indices, np.fromiter(left_out, np.int64))]
        self.check_unreadable()

    @property
    def in_memory(self) -> bool:
        """Whether no image needs decoding when it is asked for: all are in memory, or in a file that is mapped."""
        return self._packed is not None

    @property
    def sample_indices(self) -> np.ndarray:
        """The indices that `sample` is of, int64, ascending; those of unreadable images may be among them."""
        return self._sampled if self._packed is None else np.sort(self.indices)

    @property
    def sample(self) -> Sequence[np.ndarray]:
        """Decoded images that stand for all, in the order of their indices: all of them, or the sample."""
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
        return decode(self.dataset.pictures[index], self.smallest_side)

    def report_unreadable(self, found: Iterable[tuple[int, str]]) -> None:
        """Take note of images that turned out unreadable later on, and check that they are not too many."""
        self.unreadable.update(found)
        self.check_unreadable()

    def check_unreadable(self) -> None:
        """Raise HptError where more images are unreadable than is allowed."""
        count = len(self.unreadable)
        if count > (0 if self.strict else UNREADABLE_LIMIT * self._asked):
            index, reason = next(iter(self.unreadable.items()))
            allowed = "none is allowed with --strict" if self.strict else f"at most {UNREADABLE_LIMIT:.0%} may be"
            raise HptError(
                f"data: {count} of {self._asked} images of {self.dataset.name} are unreadable ({allowed}); the first "
                f"is {self.dataset.names[index]!r}: {reason}"
            )

    def __getstate__(self) -> dict[str, Any]:
        """What another process is sent: the address of a mapped file instead of its pixels, and no sample."""
        packed = self._packed
        kept = packed.file if packed is not None and packed.file is not None else packed
        return self.__dict__ | {"_packed": kept, "_sample": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        # Others may have removed the file. Then this process decodes the images that it is asked for.
        if isinstance(state["_packed"], DecodedFile):
            self._packed = state["_packed"].map()

    def _open(self, ordered: np.ndarray, cache: DecodedCache, memory_limit: float, check: bool) -> None:
        """Find the images in the cache, or keep them there or in memory, or else leave it at a sample.

        Args:
            ordered: the indices asked for, ascending.
            check: see for oneself which images of the sample are unreadable.
        """
        sample: dict[int, np.ndarray] = {}
        packed = self._found(cache, check)
        measured = self._remembered(cache, check) if packed is None else None
        if packed is None and measured is None:
            with cache.alone():
                packed = self._found(cache, check)
                if packed is None:
                    sample, size = self._measure(ordered, check)
                    written = cache.write(self._all(ordered, sample), size)
                    packed = written if isinstance(written, Packed) else None
                    measured = Measured(written, dict(self.unreadable)) if not isinstance(written, Packed) else None
        if measured is not None:
            self.unreadable = measured.unreadable | self.unreadable
            if measured.size <= memory_limit:
                packed = pack(self._all(ordered, sample))
            elif check:
                cache.remember(measured)
                self._sample = list(sample.values()) or None
        if packed is not None:
            self.unreadable = packed.unreadable | self.unreadable
        self._packed = packed

    def _found(self, cache: DecodedCache, check: bool) -> Packed | None:
        """The images in the cache, unless one that could not be read can be now."""
        packed = cache.read()
        return None if packed is None or (check and self._is_mended(packed.unreadable)) else packed

    def _remembered(self, cache: DecodedCache, check: bool) -> Measured | None:
        measured = cache.measured()
        return None if measured is None or (check and self._is_mended(measured.unreadable)) else measured

    def _is_mended(self, unreadable: Mapping[int, str]) -> bool:
        suspects = (index for index, reason in unreadable.items() if MENDABLE.search(reason))
        return any(not isinstance(self._attempt(index), str) for index in suspects)

    def _measure(self, ordered: np.ndarray, check: bool) -> tuple[dict[int, np.ndarray], float]:
        """The sample by index, and about how many bytes all images take; unreadable ones are noted."""
        sampled = self._sampled if check else evenly_spaced(ordered, SIZE_SAMPLE)
        sample = {}
        for index, image in self._decoded(sampled):
            if isinstance(image, str):
                self.unreadable[index] = image
            else:
                sample[index] = image
        if not sample and len(sampled) < len(ordered):
            return sample, np.inf  # nothing is known of the size of the others
        return sample, sum(image.nbytes for image in sample.values()) / max(1, len(sample)) * len(ordered)

    def _all(self, ordered: np.ndarray, sample: Mapping[int, np.ndarray]) -> Iterator[tuple[int, np.ndarray | str]]:
        """Index and image, or why there is none, in order; those of the sample are not decoded again."""
        missing = ordered[~np.isin(ordered, np.fromiter(sample, np.int64))]
        with closing(self._decoded(missing)) as others:
            for index in map(int, ordered):
                yield (index, sample[index]) if index in sample else next(others)

    def _decoded(self, indices: np.ndarray) -> Generator[tuple[int, np.ndarray | str], None, None]:
        """Index and image, or why there is none, in order; only a few at a time, however slowly they are taken."""
        threads = os.cpu_count() or 1
        pool = ThreadPoolExecutor(threads)
        waiting: deque[tuple[int, Future[np.ndarray | str]]] = deque()
        try:
            for index in map(int, indices):
                waiting.append((index, pool.submit(self._attempt, index)))
                if len(waiting) > AHEAD * threads:
                    first, future = waiting.popleft()
                    yield first, future.result()
            for first, future in waiting:
                yield first, future.result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _attempt(self, index: int) -> np.ndarray | str:
        if index in self.unreadable:
            return self.unreadable[index]
        try:
            return decode(self.dataset.pictures[index], self.smallest_side)
        except UnreadableImageError as error:
            return str(error)
