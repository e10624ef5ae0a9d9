"""The training state: all that an exact resume needs, as tensors and JSON.

Order, crops and the random draws of a step are functions of seed and step (`data.batches`, `training.loop`), so the
step number stands for the place in the data and for all random generators.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from hpt_mlflow.errors import HptError, one_line
from hpt_mlflow.group import Group
from hpt_mlflow.methods.base import Method
from hpt_mlflow.models.checkpoint import copy_to_cpu
from hpt_mlflow.models.weight_file import sha256

TENSORS_FILE = "training_state.safetensors"
JSON_FILE = "training_state.json"
FORMAT = "hpt_mlflow.training_state/4"


@dataclass(frozen=True)
class TrainingState:
    """A copy of the state of a training.

    Attributes:
        step: optimiser steps done.
        tensors: `method/...`, `optimizer/...` and `report/...`, on the CPU.
        scaler: state of the gradient scaler.
        unreadable: index and reason of each image that turned out unreadable.
    """

    step: int
    tensors: Mapping[str, Tensor]
    scaler: Mapping[str, Any]
    unreadable: Mapping[int, str]

    def write(self, folder: Path) -> None:
        """Write two files. The JSON file holds the checksum of the other: only together are they a state."""
        safetensors.torch.save_file(dict(self.tensors), folder / TENSORS_FILE)
        description = {
            "format": FORMAT,
            "step": self.step,
            "sha256": sha256(folder / TENSORS_FILE),
            "scaler": self.scaler,
            "unreadable": list(self.unreadable.items()),
        }
        (folder / JSON_FILE).write_text(json.dumps(description, indent=2) + "\n")

    @staticmethod
    def read(folder: Path) -> TrainingState:
        """Read a state, checked against its checksum. Nothing in it is executed.

        Raises:
            HptError: it is missing, incomplete or damaged.
        """
        try:
            description = read_description(folder)
            if sha256(folder / TENSORS_FILE) != description["sha256"]:
                raise ValueError("its checksum does not match")
            tensors = safetensors.torch.load_file(folder / TENSORS_FILE)
            unreadable = {int(index): str(reason) for index, reason in description["unreadable"]}
            return TrainingState(int(description["step"]), tensors, dict(description["scaler"]), unreadable)
        except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
            raise HptError(f"{folder.name}: not a complete training state ({one_line(error)})") from error


def read_description(folder: Path) -> dict[str, Any]:
    """The JSON file of a state; raises OSError, ValueError or KeyError if it is not one."""
    description: dict[str, Any] = json.loads((folder / JSON_FILE).read_text())
    if description["format"] != FORMAT:
        raise ValueError(f"written by another version of hpt_mlflow; this one reads {FORMAT}")
    return description


def take_state(
    step: int,
    method: Method,
    optimizer: torch.optim.Optimizer | None,
    scaler: torch.amp.GradScaler,
    report: Tensor,
    unreadable: Mapping[int, str],
) -> TrainingState:
    """Copy the state of a training, so that it can be written while the training continues.

    Args:
        report: what the next report of metrics has gathered so far, float32 (steps, metrics).
    """
    tensors = {f"method/{name}": tensor for name, tensor in method.state_dict().items()}
    for parameter, state in (optimizer.state_dict()["state"] if optimizer else {}).items():
        tensors |= {f"optimizer/{parameter}/{name}": value for name, value in state.items() if torch.is_tensor(value)}
    tensors["report/gathered"] = report
    return TrainingState(step, copy_to_cpu(tensors), scaler.state_dict(), dict(unreadable))


def put_state(
    state: TrainingState, method: Method, optimizer: torch.optim.Optimizer | None, scaler: torch.amp.GradScaler
) -> Tensor:
    """Load a state into the objects of a training that is set up in the same way.

    Returns:
        What the next report of metrics had gathered.

    Raises:
        HptError: it is the state of another training.
    """
    try:
        method.load_state_dict(_below("method/", state.tensors))
        # What a state from before lacks stays as it is.
        fresh = optimizer.state_dict()["state"] if optimizer else {}
        optimizer_state: dict[int, dict[str, Tensor]] = {number: dict(values) for number, values in fresh.items()}
        for name, tensor in _below("optimizer/", state.tensors).items():
            parameter, _, key = name.partition("/")
            optimizer_state.setdefault(int(parameter), {})[key] = tensor
        if optimizer:
            _check_shapes(optimizer_state, optimizer)
            _lay_out(optimizer_state, optimizer)
            optimizer.load_state_dict(optimizer.state_dict() | {"state": optimizer_state})
        scaler.load_state_dict(dict(state.scaler))
        return state.tensors["report/gathered"]
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise HptError(f"step {state.step}: not a state of this training ({one_line(error)})") from error


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _lay_out(state: dict[int, dict[str, Tensor]], optimizer: torch.optim.Optimizer) -> None:
    """Give values the memory layout of their parameters, which a fused optimiser expects; in place."""
    parameters = _parameters(optimizer)
    for i, tensors in state.items():
        for name, tensor in tensors.items():
            # Step counters do not have the shape of their parameter.
            if tensor.shape == parameters[i].shape:
                tensors[name] = torch.zeros_like(parameters[i]).copy_(tensor)


def share_state(group: Group, state: TrainingState) -> TrainingState:
    """The state of the first process, in all processes of a group.

    Args:
        state: that of this process; the others' tensors need not be those of the first process.
    """
    if group.size == 1:
        return state
    layout = [(name, str(tensor.dtype).removeprefix("torch."), tensor.shape) for name, tensor in state.tensors.items()]
    step, scaler, layout = group.share([state.step, state.scaler, layout])
    tensors = {}
    for name, dtype, shape in layout:
        tensors[name] = state.tensors[name] if group.first else torch.empty(shape, dtype=getattr(torch, dtype))
        group.send_from_first(tensors[name])
    return TrainingState(step, tensors, scaler, state.unreadable)


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _check_shapes(state: dict[int, dict[str, Tensor]], optimizer: torch.optim.Optimizer) -> None:
    """Raise ValueError unless the state fits the optimiser's parameters, which torch does not check."""
    parameters = _parameters(optimizer)
    for i, tensors in state.items():
        # All optimisers of torch call their counter `step`; it is the one value without the shape of its parameter.
        shapes = {tensor.shape for name, tensor in tensors.items() if name != "step" or tensor.ndim}
        if i >= len(parameters) or shapes - {parameters[i].shape}:
            raise ValueError("its optimiser learned other parameters")
