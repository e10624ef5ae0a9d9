"""Square crops of images, batch by batch: from threads, or from processes where those would keep a GPU waiting."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import TypeAlias

import numpy as np
import torch
import torch.utils.data
from torch import Tensor

from hpt_mlflow.data.dataset import Dataset
from hpt_mlflow.data.decode import decode
from hpt_mlflow.data.errors import UnreadableImageError
from hpt_mlflow.data.loading import load, workers_here, workers_with_room
from hpt_mlflow.data.reading import read_ahead
from hpt_mlflow.group import processes_here
from hpt_mlflow.pixels import PixelFormat

# Batches that threads make while one is worked on.
AHEAD = 2
# Images from which on processes are started: threads share Python's lock, and make a few thousand images per second.
FEWEST_IMAGES = 4096

# Gives the square of the image at an index, uint8 or uint16 (size, size, channels), or why it cannot be read.
Square: TypeAlias = Callable[[int], "np.ndarray | str"]


def square_of(
    dataset: Dataset, smallest_side: int, pixels: PixelFormat, crop: Callable[[np.ndarray], np.ndarray]
) -> Square:
    """A function from the index of an image to its square.

    Args:
        smallest_side, pixels: see `decode`.
        crop: cuts the square out of a decoded image.
    """

    def square(index: int) -> np.ndarray | str:
        try:
            return crop(decode(dataset.pictures[index], smallest_side, pixels))
        except UnreadableImageError as error:
            return str(error)

    return square


def square_batches(
    square: Square,
    indices: Sequence[int],
    batch_size: int,
    square_bytes: int,
    device: torch.device,
    workers: int | None = None,
) -> Iterator[list[np.ndarray | str]]:
    """Batches of squares, or, for an unreadable image, the reason; some are made in advance.

    Args:
        square_bytes: size of a square.
        device: where squares go.
        workers: threads, or for many images and a GPU processes; None for what suits the machine.

    Raises:
        HptError: a process is gone.
    """
    forks = "fork" in multiprocessing.get_all_start_methods()
    if device.type == "cuda" and forks and len(indices) >= FEWEST_IMAGES:
        here = processes_here()
        wanted = workers_here(here) if workers is None else workers
        if processes := workers_with_room(wanted, batch_size * square_bytes, here):
            parts = (list(indices[start : start + batch_size]) for start in range(0, len(indices), batch_size))
            for pixels, unreadable in load(_Batches(square), parts, processes, context="fork"):
                squares = iter(pixels.numpy())
                count = len(pixels) + len(unreadable)
                yield [unreadable[place] if place in unreadable else next(squares) for place in range(count)]
            return
    made = (
        one for _, one in read_ahead(square, indices, AHEAD * batch_size, None if workers is None else max(1, workers))
    )
    while batch := list(islice(made, batch_size)):
        yield batch


class _Batches(torch.utils.data.Dataset[tuple[Tensor, dict[int, str]]]):
    """Of some images, the squares of those that can be read, and why the others cannot, by their place."""

    def __init__(self, square: Square) -> None:
        self._square = square

    def __getitem__(self, indices: list[int]) -> tuple[Tensor, dict[int, str]]:
        made = [self._square(index) for index in indices]
        squares = [one for one in made if not isinstance(one, str)]
        pixels = torch.from_numpy(np.stack(squares)) if squares else torch.empty(0)
        return pixels, {place: one for place, one in enumerate(made) if isinstance(one, str)}
