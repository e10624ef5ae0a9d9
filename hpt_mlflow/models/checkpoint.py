"""A backbone as two files: weights in safetensors, everything else in JSON. Reading them executes nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor, nn

from hpt_mlflow.errors import HptError, one_line
from hpt_mlflow.models.architecture import Architecture
from hpt_mlflow.models.backbone import build_backbone

WEIGHTS_FILE = "backbone.safetensors"
CARD_FILE = "backbone.json"
FORMAT = "hpt_mlflow.backbone/1"


@dataclass(frozen=True)
class BackboneCard:
    """What one must know to use a backbone.

    Attributes:
        feature_size: length of the features.
        mean, std: channel statistics that images are normalised with, in [0, 1].
        chain: names of the datasets that it has learned from, oldest first.
        step: optimiser steps of the last stage behind it.
    """

    architecture: Architecture
    feature_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    chain: tuple[str, ...] = field(default=())
    step: int = 0


def copy_to_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of tensors, so that they can be written while the training goes on."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def save_backbone(folder: Path, weights: Mapping[str, Tensor], card: BackboneCard) -> None:
    """Write a backbone into a folder, which is made if need be.

    Args:
        weights: its state, on the CPU (see `copy_to_cpu`).
    """
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(dict(weights), folder / WEIGHTS_FILE)
    values = {"format": FORMAT, **card.architecture.as_settings(), **asdict(card)}
    del values["architecture"]
    (folder / CARD_FILE).write_text(json.dumps(values, indent=2) + "\n")


def load_backbone(folder: Path, name: str) -> tuple[nn.Module, BackboneCard]:
    """Read a backbone from a folder, at any depth below it.

    Args:
        name: how errors call it.

    Returns:
        The backbone on the CPU, in training mode, and its card.

    Raises:
        HptError: there is none, or its files do not fit together.
    """
    cards = sorted(folder.rglob(CARD_FILE))
    if not cards:
        raise HptError(f"{name} was not made by hpt_mlflow: it has no {CARD_FILE}")
    card = _read_card(cards[0], name)
    backbone, feature_size = build_backbone(card.architecture)
    try:
        backbone.load_state_dict(safetensors.torch.load_file(cards[0].with_name(WEIGHTS_FILE)))
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise HptError(f"{name}: its weights do not fit its {CARD_FILE} or are damaged ({one_line(error)})") from error
    if feature_size != card.feature_size:
        raise HptError(
            f"{name}: {CARD_FILE} says {card.feature_size} features, {card.architecture.name} has {feature_size}"
        )
    return backbone, card


def _read_card(file: Path, name: str) -> BackboneCard:
    try:
        values: dict[str, Any] = json.loads(file.read_text())
        if values.pop("format") != FORMAT:
            raise HptError(f"{name} was made by another version of hpt_mlflow; this one reads {FORMAT}")
        kinds = {"arch": str, "image_size": int, "small_stem": bool, "feature_size": int, "step": int}
        for key, kind in kinds.items():
            if key in values and type(values[key]) is not kind:
                raise TypeError(f"{key} is {values[key]!r}")
        architecture = Architecture(values.pop("arch"), values.pop("image_size"), values.pop("small_stem"))
        values |= {key: tuple(values[key]) for key in ("mean", "std", "chain")}
        return BackboneCard(architecture, **values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise HptError(f"{name}: {CARD_FILE} is damaged ({error})") from error
