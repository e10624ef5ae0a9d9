"""Batches from worker processes: how many suit the machine, and what happens when one is lost."""

from __future__ import annotations

import logging
import shutil
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from hpt_mlflow.cores import available_cores
from hpt_mlflow.data.batches import Batch, ViewBatches
from hpt_mlflow.data.errors import data_error
from hpt_mlflow.data.images import Images
from hpt_mlflow.errors import HptError, one_line
from hpt_mlflow.group import processes_here
from hpt_mlflow.signals import WARNING

# More have never been seen to help, and each takes memory.
MOST_WORKERS = 32
# Batches that a worker makes ahead.
AHEAD = 4
# Where workers leave their batches, on Linux.
SHARED_MEMORY = "/dev/shm"
GIB = 2**30
# What torch says of a worker that is gone.
LOST = ("exited unexpectedly", "is killed by signal")

T = TypeVar("T")

log = logging.getLogger("hpt_mlflow")


def iterate(batches: ViewBatches, steps: range, workers: int, device: torch.device) -> Iterator[Batch]:
    """The batches of these steps in order, loaded by `workers` processes, or by this one if `workers` is 0.

    Where images are on a GPU already, this process cuts their crops there.

    Raises:
        HptError: too many images are unreadable, or a worker is gone.
    """
    workers = 0 if batches.gpu_images else workers_with_room(workers, batches.nbytes(), processes_here())
    pinned = device.type == "cuda" and not batches.gpu_images
    yield from load(batches, batches.tasks(steps), workers, pinned, setting="workers")


def load(
    dataset: Dataset[T],
    tasks: Iterable[Any],
    workers: int,
    pinned: bool = False,
    context: str | None = None,
    setting: str = "",
) -> Iterator[T]:
    """What a dataset gives for each task, in order.

    Args:
        tasks: what its `__getitem__` takes.
        workers: processes that do them; 0 for this one.
        pinned: whether tensors come in memory that a GPU reads by itself.
        context: how processes are started; None for Python's default.
        setting: of the user, for the number of workers of a training; empty if there is none.

    Raises:
        HptError: raised by the dataset, or a worker is gone.
    """
    loader: DataLoader[T] = DataLoader(
        dataset,
        batch_size=None,
        sampler=tasks,
        num_workers=workers,
        pin_memory=pinned,
        worker_init_fn=_start_worker,
        persistent_workers=False,
        prefetch_factor=AHEAD if workers else None,
        multiprocessing_context=context if workers else None,
        # Otherwise it draws from the generator of the process.
        generator=torch.Generator(),
    )
    handler = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
    loaded = iter(loader)
    if workers and handler is not None and threading.current_thread() is threading.main_thread():
        # torch would raise in the middle of anything when a worker is gone; the loader sees it within seconds.
        signal.signal(signal.SIGCHLD, handler)
    try:
        yield from loaded
    except HptError as error:
        # A worker's error comes with its traceback; its message is at the end.
        raise data_error(str(error).rstrip().rpartition("HptError: ")[2].removeprefix("data: ")) from None
    except RuntimeError as error:
        if not any(words in str(error) for words in LOST):
            raise
        remedy = "repeat the command"
        if setting:
            remedy += f" with fewer {setting} (this process had {workers}); the training resumes from its last state"
        raise HptError(
            f"a process that decodes images is gone ({one_line(error)}); perhaps the system had too little memory, or "
            f"its container too little in {SHARED_MEMORY} (docker run --shm-size)",
            remedy,
            setting=setting,
        ) from error


def default_workers(images: Images, device: torch.device, processes: int) -> int:
    """Worker processes that suit the machine: none if images are decoded already and the CPU is busy training.

    Args:
        processes: that train on this machine, each with its own workers.
    """
    if images.in_memory and device.type == "cpu":
        return 0
    return workers_here(processes)


def workers_here(processes: int) -> int:
    """As many worker processes as there are cores for each of the processes at work, beside itself."""
    return min(MOST_WORKERS, max(1, available_cores() // processes - 1))


def workers_with_room(workers: int, batch_bytes: int, processes: int = 1) -> int:
    """As many workers as have room for their batches in shared memory; fewer than asked for come with a warning.

    Args:
        processes: that train on this machine and share the room.
    """
    with suppress(OSError):
        free = shutil.disk_usage(SHARED_MEMORY).free // processes
        room = int(free // (batch_bytes * (AHEAD + 1)))
        if room < workers:
            log.warning(
                "%s has %.2f GiB free for this process, enough for %d instead of %d processes that decode images; a "
                "container gets more by docker run --shm-size",
                SHARED_MEMORY,
                free / GIB,
                room,
                workers,
            )
            return room
    return workers


def _start_worker(worker: int) -> None:
    """Leave signals to the training process, which stops its workers itself."""
    for number in (signal.SIGINT, WARNING):
        if number:
            signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
