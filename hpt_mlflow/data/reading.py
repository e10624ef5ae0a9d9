"""Reading images ahead of the work on them, with threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from hpt_mlflow.cores import available_cores


def read_ahead(
    read: Callable[[int], np.ndarray | str], indices: Iterable[int], ahead: int, threads: int | None = None
) -> Generator[tuple[int, np.ndarray | str], None, None]:
    """Index and image, or why it is unreadable, in order; only a few in advance, however slow the consumer is.

    Args:
        read: gives the image at an index, or why it cannot be read.
        ahead: images that are read in advance.
        threads: None for one per core that this process may use.
    """
    pool = ThreadPoolExecutor(threads or available_cores())
    waiting: deque[tuple[int, Future[np.ndarray | str]]] = deque()
    try:
        for index in map(int, indices):
            waiting.append((index, pool.submit(read, index)))
            if len(waiting) > ahead:
                first, future = waiting.popleft()
                yield first, future.result()
        for first, future in waiting:
            yield first, future.result()
    finally:
        pool.shutdown(cancel_futures=True)
