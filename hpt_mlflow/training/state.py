"""The training state: all that an exact resume needs, as tensors and JSON.

Order, crops and the random draws of a step are functions of seed and step (`data.batches`, `training.loop`), so the
step number stands for the place in the data and for all random generators.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from hpt_mlflow.errors import HptError, one_line
from hpt_mlflow.models.moco import MoCo

TENSORS_FILE = "training_state.safetensors"
JSON_FILE = "training_state.json"
FORMAT = "hpt_mlflow.training_state/1"


def save_state(
    folder: Path, step: int, moco: MoCo, optimizer: torch.optim.Optimizer | None, scaler: torch.amp.GradScaler
) -> None:
    """Write the state after `step` steps. The JSON file is put in place last: without it the state is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"moco/{name}": tensor for name, tensor in moco.state_dict().items()}
    for parameter, state in (optimizer.state_dict()["state"] if optimizer else {}).items():
        tensors |= {f"optimizer/{parameter}/{name}": value for name, value in state.items() if torch.is_tensor(value)}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    safetensors.torch.save_file(tensors, folder / TENSORS_FILE)
    description = {"format": FORMAT, "step": step, "scaler": scaler.state_dict()}
    temporary = folder / (JSON_FILE + ".part")
    temporary.write_text(json.dumps(description, indent=2) + "\n")
    os.replace(temporary, folder / JSON_FILE)


def load_state(folder: Path, moco: MoCo, optimizer: torch.optim.Optimizer | None, scaler: torch.amp.GradScaler) -> int:
    """Put a state back into the objects of a training that is set up in the same way.

    Returns:
        The number of steps behind it.

    Raises:
        HptError: there is no complete state, or it is of another training.
    """
    try:
        description: dict[str, Any] = json.loads((folder / JSON_FILE).read_text())
        tensors = safetensors.torch.load_file(folder / TENSORS_FILE)
        if description["format"] != FORMAT:
            raise HptError(f"{folder}: made by another version of hpt_mlflow; this one reads {FORMAT}")
        moco.load_state_dict({name[5:]: tensor for name, tensor in tensors.items() if name.startswith("moco/")})
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimizer/"):
                _, parameter, key = name.split("/")
                state.setdefault(int(parameter), {})[key] = tensor
        if optimizer:
            _check_shapes(state, optimizer)
            optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
        scaler.load_state_dict(description["scaler"])
        return int(description["step"])
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, safetensors.SafetensorError) as error:
        raise HptError(f"{folder}: not a training state of this training ({one_line(error)})") from error


def _check_shapes(state: dict[int, dict[str, torch.Tensor]], optimizer: torch.optim.Optimizer) -> None:
    """Raise ValueError unless the state is one of the optimiser's own parameters: torch itself does not look."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for i, tensors in state.items():
        if i >= len(parameters) or any(tensor.shape != parameters[i].shape for tensor in tensors.values()):
            raise ValueError("its optimiser learned other parameters")
