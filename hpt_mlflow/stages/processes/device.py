"""Which device a stage runs on."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hpt_mlflow.errors import HptError, one_line
from hpt_mlflow.gpu_errors import lacks_memory

# How torch begins to say so.
NO_GPU = "CUDA initialization: "
NAMES = "auto, cpu, cuda, cuda:N or mps"

log = logging.getLogger("hpt_mlflow")
_reasons: list[str] = []


def resolve_device(name: str) -> torch.device:
    """The device of this name; for `auto`, a GPU if there is one.

    Raises:
        HptError: there is no such device, or not on this machine.
    """
    if name == "auto":
        why_none = _why_no_gpu()
        if why_none:
            log.warning("device: no GPU is used (%s)", why_none)
        elif torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise HptError(f"unknown device {name!r}", f"use {NAMES}", setting="device") from None
    if device.type == "cuda":
        count, why_none = torch.cuda.device_count(), _why_no_gpu()
        if why_none or not torch.cuda.is_available() or (device.index or 0) >= count:
            problem = f"{name} is not available: " + (why_none or f"torch sees {count} CUDA devices")
            raise HptError(problem, "use auto or cpu", setting="device")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise HptError("mps is not available", "use auto or cpu", setting="device")
    if device.type not in ("cpu", "cuda", "mps"):
        raise HptError(f"{name!r} is not supported", f"use {NAMES}", setting="device")
    return device


def _why_no_gpu() -> str:
    """What torch says where there is a GPU that it cannot use; empty where there is none, or all is well."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.is_available()
    # torch says it once in a process.
    _reasons.extend(text for warning in caught if (text := str(warning.message)).startswith(NO_GPU))
    reason = _reasons[0].partition(" (Triggered internally")[0] if _reasons else ""
    return " ".join(reason.removeprefix(NO_GPU).split())


@contextmanager
def memory_errors() -> Iterator[None]:
    """Raise HptError where a device has no memory left and nothing more is known; a training says which batch fits."""
    try:
        yield
    except RuntimeError as error:
        if not lacks_memory(error):
            raise
        problem = f"no memory left on it ({one_line(error)})"
        raise HptError(problem, "free some, or use smaller images, smaller batches or cpu", setting="device") from error


def device_in_turn(device: str, place: int, nproc: int = 1) -> str:
    """The GPU for one of several trainings side by side, in turn, if there are several GPUs.

    A training of several processes keeps the name as it is: each of its processes takes a GPU.
    """
    shared_out = device in ("auto", "cuda") and nproc == 1 and torch.cuda.is_available()
    count = torch.cuda.device_count() if shared_out else 0
    return f"cuda:{place % count}" if count > 1 else device
