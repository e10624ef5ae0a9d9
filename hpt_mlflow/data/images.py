"""Decoded images of a dataset: kept in memory where they fit, decoded again where they do not."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from hpt_mlflow.data.dataset import Dataset
from hpt_mlflow.data.decode import UnreadableImageError, decode
from hpt_mlflow.errors import HptError

MEMORY_LIMIT_BYTES = 1 << 30
SAMPLE_SIZE = 2048
UNREADABLE_LIMIT = 0.01


class Images:
    """The images of a dataset that a stage uses, as uint8 (height, width, 3).

    Opening them decodes all that fit into `MEMORY_LIMIT_BYTES`, or else an evenly spaced sample, so that unreadable
    images are known before any long work.

    Attributes:
        indices: int64, the readable ones of the indices asked for (of a sample: all that were not found unreadable).
        unreadable: reason by index.
        in_memory: whether every image is kept decoded.
        sample: decoded images that stand for all: all of them, or the sample.
    """

    def __init__(
        self,
        dataset: Dataset,
        indices: np.ndarray,
        smallest_side: int,
        strict: bool = False,
        memory_limit_bytes: int | None = None,
    ) -> None:
        """
        Args:
            indices: which images of the dataset.
            smallest_side: images are kept reduced so that their shorter side has at most so many pixels.
            strict: refuse any unreadable image instead of up to `UNREADABLE_LIMIT` of them.
            memory_limit_bytes: how much may be kept decoded; `MEMORY_LIMIT_BYTES` where it is None.

        Raises:
            HptError: too many images are unreadable.
        """
        self.dataset = dataset
        self.smallest_side = smallest_side
        self.strict = strict
        self.unreadable: dict[int, str] = {}
        self._asked = len(indices)
        self._position: dict[int, int] = {}
        spread = np.linspace(0, len(indices) - 1, min(SAMPLE_SIZE, len(indices))).astype(np.int64)
        sample_indices = indices[np.unique(spread)]
        sample = self._decode_all(sample_indices)
        mean_bytes = sum(image.nbytes for image in sample.values()) / max(1, len(sample))
        limit = MEMORY_LIMIT_BYTES if memory_limit_bytes is None else memory_limit_bytes
        self.in_memory = mean_bytes * len(indices) <= limit
        if self.in_memory:
            sample |= self._decode_all(np.setdiff1d(indices, sample_indices))
            self._keep(sample)
        self.indices = np.array([i for i in indices if i not in self.unreadable], dtype=np.int64)
        self.sample: Sequence[np.ndarray] = [sample[i] for i in sorted(sample)]
        if self.in_memory:
            self.sample = _KeptImages(self)
        self.check_unreadable()

    def __getitem__(self, index: int) -> np.ndarray:
        """The image at an index into the dataset.

        Raises:
            UnreadableImageError: it cannot be decoded.
        """
        if int(index) in self.unreadable:
            raise UnreadableImageError(self.unreadable[int(index)])
        if self.in_memory:
            return self._kept(self._position[int(index)])
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

    def _decode_all(self, indices: np.ndarray) -> dict[int, np.ndarray]:
        def attempt(index: int) -> np.ndarray | str:
            try:
                return decode(self.dataset.pictures[index], self.smallest_side)
            except UnreadableImageError as error:
                return str(error)

        decoded = {}
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for index, result in zip(indices.tolist(), pool.map(attempt, indices.tolist()), strict=True):
                if isinstance(result, str):
                    self.unreadable[index] = result
                else:
                    decoded[index] = result
        return decoded

    def _keep(self, images: dict[int, np.ndarray]) -> None:
        """Put the images into one tensor, which worker processes share instead of copying it."""
        ordered = sorted(images)
        self._position = {index: position for position, index in enumerate(ordered)}
        self._shapes = np.array([images[i].shape for i in ordered], dtype=np.int64).reshape(-1, 3)
        self._ends = np.cumsum(self._shapes.prod(axis=1))
        self._pixels = torch.empty(int(self._ends[-1]) if ordered else 0, dtype=torch.uint8)
        for position, index in enumerate(ordered):
            self._kept(position)[:] = images[index]

    def _kept(self, position: int) -> np.ndarray:
        shape = self._shapes[position]
        end = self._ends[position]
        return self._pixels.numpy()[end - shape.prod() : end].reshape(shape)


class _KeptImages(Sequence[np.ndarray]):
    """All kept images in the order of their indices."""

    def __init__(self, images: Images) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images._ends)

    def __getitem__(self, position):  # type: ignore[no-untyped-def]
        return self._images._kept(position)
