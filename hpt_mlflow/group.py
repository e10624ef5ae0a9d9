"""The processes that train together, one per GPU or share of the cores, and the data that they exchange."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from hpt_mlflow.errors import HptError, one_line

# A process may keep the others waiting while it decodes a whole dataset for all of them.
TIMEOUT = timedelta(hours=2)
# Must be set in the environment of every process of several, whoever has started it.
VARIABLES = ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT")
# NCCL's errors that do not mean that another process is gone, unless their text names a remote peer.
NOT_LOST = ("ncclUnhandledCudaError", "ncclSystemError", "ncclInvalidArgument", "ncclInvalidUsage")
# How many trainings a search or a study does at once on this machine; set for its processes.
SIDE_BY_SIDE = "HPT_SIDE_BY_SIDE"

log = logging.getLogger("hpt_mlflow")


class LostProcessError(HptError):
    """Another process of the training has ended; that process itself reports why."""


@dataclass(frozen=True)
class Group:
    """This process among those that train together. A group of one communicates nothing.

    Every process must call the same methods in the same order, with tensors of the same shapes.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that talks to MLflow and to the user."""
        return self.rank == 0

    def part(self, count: int) -> slice:
        """This process's share of `count` things, a multiple of the size."""
        share = count // self.size
        return slice(self.rank * share, (self.rank + 1) * share)

    def share(self, value: Any = None) -> Any:
        """The value that the first process passes, as JSON, in all of them."""
        return value if self.size == 1 else self.collect(value if self.first else None)[0]

    def collect(self, value: Any) -> list[Any]:
        """The values that the processes pass, as JSON, in the order of their ranks."""
        if self.size == 1:
            return [value]
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        lengths = self.gather(torch.tensor([len(text)])).tolist()
        padded = torch.zeros(max(lengths), dtype=torch.uint8)
        padded[: len(text)] = text
        texts = self.gather(padded).view(self.size, -1)
        return [json.loads(bytes(t[:length].tolist())) for t, length in zip(texts, lengths, strict=True)]

    def any(self, *flags: bool) -> list[bool]:
        """For each flag, whether any process has set it."""
        if self.size == 1:
            return list(flags)
        counts = torch.tensor([int(flag) for flag in flags])
        with losses():
            dist.all_reduce(counts)
        return (counts > 0).tolist()

    def gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all processes, (n, ...) each, joined along the first dimension in the order of their ranks."""
        if self.size == 1:
            return tensor
        parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(self.size)]
        with losses():
            dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    def gather_with_gradients(self, tensor: Tensor) -> Tensor:
        """As `gather`; in the backward pass each process gets the sum of all gradients for what it gave."""
        if self.size == 1:
            return tensor
        gathered: Tensor = _Gather.apply(tensor, self)
        return gathered

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean of the tensors of all processes, float32; of equal ones it is each of them, to the bit."""
        return tensor if self.size == 1 else self.gather(tensor[None]).double().mean(dim=0).to(tensor.dtype)

    def send_from_first(self, tensor: Tensor) -> None:
        """Put the first process's values into the tensors of the others; in place."""
        if self.size > 1:
            copy = tensor.contiguous()
            with losses():
                dist.broadcast(copy, src=0)
            tensor.copy_(copy)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return group.gather(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.contiguous()
        with losses():
            dist.all_reduce(total)
        return total[ctx.group.part(len(total))], None


ALONE = Group()


def joins_others() -> bool:
    """Whether this process was started as one of several: by torchrun, or by a launcher that sets the same variables.

    Kubernetes' operators for PyTorch do so. WORLD_SIZE without any of the others says nothing.

    Raises:
        HptError: some of the variables are set, but not all, or not to numbers.
    """
    given = {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}
    by_torchrun = dist.is_torchelastic_launched()
    if _number("WORLD_SIZE", 1) < 2 or (given.keys() == {"WORLD_SIZE"} and not by_torchrun):
        return False
    missing = [name for name in VARIABLES if name not in given]
    if missing and not by_torchrun:
        is_set = ", ".join(f"{name}={value}" for name, value in given.items())
        raise HptError(
            f"not set, though {is_set} says that several processes train together",
            "set all four variables, start them with torchrun, or unset WORLD_SIZE to train in one process",
            setting=", ".join(missing),
        )
    rank, size = _number("RANK", 0), _number("WORLD_SIZE", 1)
    if not 0 <= rank < size:
        raise HptError(f"{rank} is not one of the {size} processes of WORLD_SIZE, which count from 0", setting="RANK")
    return True


def is_first() -> bool:
    """Whether this process is alone, or the first of several."""
    return not joins_others() or _number("RANK", 0) == 0


def processes_here() -> int:
    """How many processes train on this machine: those of the group, in each of the trainings side by side."""
    return (_number("LOCAL_WORLD_SIZE", 1) if joins_others() else 1) * side_by_side()


def was_restarted() -> bool:
    """Whether this process was started again, after one of the group had ended."""
    return joins_others() and _number("TORCHELASTIC_RESTART_COUNT", 0) > 0


def own_device(device: torch.device) -> torch.device:
    """The device of this process: of several GPUs, the one with the LOCAL_RANK of the process."""
    if device.type != "cuda" or not joins_others():
        return device
    number = _number("LOCAL_RANK", 0)
    if number >= (count := torch.cuda.device_count()):
        problem = f"there is no GPU for process {number + 1}: torch sees {count}"
        raise HptError(problem, f"use nproc {count} or device cpu", setting="nproc")
    return torch.device("cuda", number)


@contextmanager
def training_group(device: torch.device) -> Iterator[Group]:
    """Join the processes that were started with this one, or be alone if there are none.

    Args:
        device: see `own_device`.
    """
    if not joins_others():
        yield ALONE
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not dist.is_torchelastic_launched():
        log.warning(
            "process %s of %s: waiting for the others at %s:%s",
            *(os.environ[name] for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")),
        )
    if dist.is_initialized():
        problem = "torch.distributed is initialised already in this process, as after a training that failed"
        raise HptError(problem, "start all processes again")
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    with losses():
        dist.init_process_group(backend, timeout=TIMEOUT)
    try:
        yield Group(dist.get_rank(), dist.get_world_size())
    except BaseException:
        # NCCL would wait for the others, which may wait for this process.
        if device.type != "cuda":
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def end_if_abandoned(code: int, say: Callable[[], object] = lambda: None) -> None:
    """End this process without waiting for the others of its group, if an error has made it leave them.

    Args:
        say: called before the process ends.
    """
    if dist.is_available() and dist.is_initialized():
        say()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


@contextmanager
def losses() -> Iterator[None]:
    """Report in one line what torch says of the network: that another process is gone, or what NCCL lacks.

    Every other error passes, such as those of the networks that are trained in the block.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        if cause := _own_cause(str(error)):
            remedy = "NCCL_DEBUG=INFO says more; a container may need docker run --shm-size"
            raise HptError(f"NCCL, by which GPUs exchange data, has failed: {cause}", remedy) from error
        raise LostProcessError(f"another process of this training has ended ({one_line(error)})") from error


def _own_cause(text: str) -> str:
    """Why NCCL has failed in this process itself; empty if it has not."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    named = [line for line in lines if line.startswith(NOT_LOST)]
    if not named or "remote peer" in text:
        return ""
    _, found, rest = text.partition("Last error:")
    return next((line.strip() for line in rest.splitlines() if line.strip()), named[0]) if found else named[0]


def side_by_side() -> int:
    """How many trainings a search or a study around this process does at once on this machine."""
    return _number(SIDE_BY_SIDE, 1)


def _number(name: str, default: int) -> int:
    """The whole number that a variable is set to.

    Raises:
        HptError: it is set to something else.
    """
    text = os.environ.get(name) or str(default)
    try:
        return int(text)
    except ValueError:
        remedy = "set the variable as torchrun does, or unset it"
        raise HptError(f"{text!r} is not a whole number", remedy, setting=name) from None
