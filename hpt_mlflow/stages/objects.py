"""Datasets and networks that Python callers pass as objects, in place of an address or a name.

Settings are texts and numbers, which runs log and commands repeat. An object gets a text that stands for it in this
process: `memory:NAME-1` for a dataset, `module:NAME-1a2b3c4d` for a network.
"""

from __future__ import annotations

import copy
import os
import sys
from dataclasses import asdict
from typing import Any

import numpy as np

from hpt_mlflow.data.dataset import content_digest
from hpt_mlflow.data.sources import IN_MEMORY, hold_in_memory
from hpt_mlflow.errors import HptError
from hpt_mlflow.models.architecture import MODULE
from hpt_mlflow.options import Settings

DATASET_OPTIONS = ("data", "base", "source", "target")


def as_setting(name: str, value: Any) -> Any:
    """The text that stands for a dataset or a network; other values as they are."""
    if name in DATASET_OPTIONS and not (value is None or isinstance(value, str | os.PathLike)):
        return hold_in_memory(value)
    # Who has a network has imported torch, which takes seconds.
    if name == "arch" and "torch" in sys.modules and isinstance(value, sys.modules["torch"].nn.Module):
        from hpt_mlflow.models.backbone import register_architecture

        # Named by its layers and weights, so that the same network is the same work in another process.
        layers = np.frombuffer(str(value).encode(), np.uint8)
        weights = (tensor.detach().cpu().double().numpy() for tensor in value.state_dict().values())
        text = f"{MODULE}{type(value).__name__}-{content_digest(layers, *weights)[:8]}"
        register_architecture(text, lambda image_size: copy.deepcopy(value))
        return text
    return value


def is_object(value: Any) -> bool:
    """Whether a setting stands for an object of this process."""
    return isinstance(value, str) and value.startswith((IN_MEMORY, MODULE))


def refuse_objects(settings: Settings) -> None:
    """Raise HptError if other processes would need an object of this one."""
    for name, value in asdict(settings).items():
        if is_object(value):
            problem = f"{value} was passed as an object, which other processes cannot open"
            raise HptError(problem, "pass an address or a registered name, or use a stage in one process", setting=name)
