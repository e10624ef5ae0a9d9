"""Reading images ahead of the work on them, with threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

import numpy as np

from hpt_mlflow.cores import available_cores
from hpt_mlflow.data.dataset import Dataset
from hpt_mlflow.data.decode import decode
from hpt_mlflow.data.errors import UnreadableImageError
from hpt_mlflow.pixels import PixelFormat

# Batches that are decoded while one is worked on.
AHEAD = 2


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


def decoded_batches(
    dataset: Dataset,
    indices: Sequence[int],
    smallest_side: int,
    pixels: PixelFormat,
    batch_size: int,
    threads: int | None = None,
    crop: Callable[[np.ndarray], np.ndarray] = lambda image: image,
) -> Iterator[list[np.ndarray | str]]:
    """Batches of images, (height, width, channels), or in place of one why it cannot be read.

    Args:
        smallest_side, pixels: see `decode`.
        crop: done to each image by the threads, too.
        threads: None for one per core that this process may use.
    """

    def read(index: int) -> np.ndarray | str:
        try:
            return crop(decode(dataset.pictures[index], smallest_side, pixels))
        except UnreadableImageError as error:
            return str(error)

    images = (image for _, image in read_ahead(read, indices, AHEAD * batch_size, threads))
    while batch := list(islice(images, batch_size)):
        yield batch
