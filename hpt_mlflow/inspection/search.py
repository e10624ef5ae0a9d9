"""The nearest of many vectors: exactly, in blocks, or among millions with faiss."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import numpy as np

from hpt_mlflow.errors import HptError

# Up to this many vectors, all are compared with all.
MOST_EXACT = 50_000
# Queries and vectors of a block.
ROWS = 4096
# Of faiss's inverted file: lists per square root of vectors, lists that are searched per query, and how many vectors
# per list its centres are learned from.
LISTS, SEARCHED, LEARNED_FROM = 4, 8, 40


def check_can_search(count: int) -> None:
    """
    Raises:
        HptError: there are too many vectors to compare them all, and faiss is not installed.
    """
    if count > MOST_EXACT and importlib.util.find_spec("faiss") is None:
        raise HptError(
            f"near copies among {count:,} images need the package faiss",
            'install it with pip install "hpt_mlflow[faiss]", or use --near false',
            setting="near",
        )


class Neighbours:
    """Vectors among which the nearest are found by their inner product, the cosine for vectors of length 1.

    Args:
        vectors: float32 or float16 (N, D), of length 1, or 0 for what is nobody's neighbour; a mapped file will do.
        exact: compare with all; None for up to `MOST_EXACT` vectors.
    """

    def __init__(self, vectors: np.ndarray, exact: bool | None = None) -> None:
        self._vectors = vectors
        self._index = None if (len(vectors) <= MOST_EXACT if exact is None else exact) else _index(vectors)

    def within(self, queries: np.ndarray, count: int, least: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The up to `count` nearest vectors of each query that are at least so near.

        Args:
            queries: float32 or float16 (M, D).

        Returns:
            Positions of queries, int64 (P,), ascending; of vectors, int64 (P,); and products, float32 (P,).
        """
        found = [
            (start + np.nonzero(near)[0], positions[near], products[near])
            for start, products, positions in self._blocks(queries, min(count, len(self._vectors)))
            if (near := products >= least).any()
        ]
        if not found:
            return np.array([], np.int64), np.array([], np.int64), np.array([], np.float32)
        one, other, products = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return one, other.astype(np.int64), products

    def _blocks(self, queries: np.ndarray, count: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Of blocks of queries, the position of the first, products and positions of the nearest, (m, count) each."""
        search = self._compare_with_all if self._index is None else self._index.search
        for start in range(0, len(queries) if count else 0, ROWS):
            yield start, *search(np.ascontiguousarray(queries[start : start + ROWS], np.float32), count)

    def _compare_with_all(self, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Products and positions of the nearest vectors, (m, count) each, in blocks of vectors."""
        products, positions = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
        for start in range(0, len(self._vectors), ROWS):
            block = queries @ self._vectors[start : start + ROWS].astype(np.float32, copy=False).T
            at = np.broadcast_to(np.arange(start, start + block.shape[1]), block.shape)
            products, positions = np.hstack([products, block]), np.hstack([positions, at])
            if products.shape[1] > count:
                nearest = np.argpartition(products, -count, axis=1)[:, -count:]
                products = np.take_along_axis(products, nearest, axis=1)
                positions = np.take_along_axis(positions, nearest, axis=1)
        return products, positions


def _index(vectors: np.ndarray) -> Any:
    """faiss's inverted file of the vectors in 16 bits: half the memory, and no loss that matters to a threshold."""
    import faiss  # type: ignore[import-not-found, import-untyped, unused-ignore]

    lists = min(1 << round(np.log2(LISTS * np.sqrt(len(vectors)))), max(1, len(vectors) // LEARNED_FROM))
    index: Any = faiss.index_factory(vectors.shape[1], f"IVF{lists},SQfp16", faiss.METRIC_INNER_PRODUCT)
    learned_from = np.linspace(0, len(vectors) - 1, min(len(vectors), LEARNED_FROM * lists)).astype(np.int64)
    index.train(np.ascontiguousarray(vectors[learned_from], np.float32))
    for start in range(0, len(vectors), 1 << 16):
        index.add(np.ascontiguousarray(vectors[start : start + (1 << 16)], np.float32))
    index.nprobe = SEARCHED
    return index
