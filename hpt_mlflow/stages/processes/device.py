"""Which device a stage runs on."""

from __future__ import annotations

import torch

from hpt_mlflow.errors import HptError


def resolve_device(name: str) -> torch.device:
    """The device of this name; for `auto`, a GPU where there is one.

    Raises:
        HptError: no such device, or it is not here.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise HptError(f"device: unknown device {name!r}; use auto, cpu, cuda, cuda:N or mps") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise HptError(
            f"device: {name} is not here; torch sees {torch.cuda.device_count()} CUDA devices; use auto or cpu"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise HptError("device: mps is not here; use auto or cpu")
    if device.type not in ("cpu", "cuda", "mps"):
        raise HptError(f"device: {name!r} is not supported; use auto, cpu, cuda, cuda:N or mps")
    return device


def device_in_turn(device: str, place: int, nproc: int = 1) -> str:
    """A GPU for each of several trainings, in turn, where there are several.

    Of a training of several processes, each takes one of its own: it keeps the name as it is.
    """
    count = torch.cuda.device_count() if device in ("auto", "cuda") and nproc == 1 else 0
    return f"cuda:{place % count}" if count > 1 else device
