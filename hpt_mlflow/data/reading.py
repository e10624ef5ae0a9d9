"""Every image of a dataset once, in order, decoded by threads ahead of the work on them."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np

from hpt_mlflow.data.dataset import Dataset
from hpt_mlflow.data.decode import UnreadableImageError, decode

# Batches that are decoded while one is worked on.
AHEAD = 2


def decoded_batches(
    dataset: Dataset, indices: Sequence[int], smallest_side: int, batch_size: int, threads: int | None = None
) -> Iterator[list[np.ndarray | str]]:
    """Batches of images, uint8 (height, width, 3), or in place of one why it cannot be read.

    Args:
        smallest_side: images are reduced so that their shorter side has at most this many pixels.
        threads: None for one per processor.
    """

    def read(index: int) -> np.ndarray | str:
        try:
            return decode(dataset.pictures[index], smallest_side)
        except UnreadableImageError as error:
            return str(error)

    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        parts = (indices[start : start + batch_size] for start in range(0, len(indices), batch_size))
        waiting = deque([pool.submit(read, index) for index in part] for part in islice(parts, AHEAD))
        while waiting:
            batch = [future.result() for future in waiting.popleft()]
            waiting.extend([pool.submit(read, index) for index in part] for part in islice(parts, 1))
            yield batch
