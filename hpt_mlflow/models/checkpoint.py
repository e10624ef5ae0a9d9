"""A backbone as two files: weights in safetensors, everything else in JSON. Reading them executes nothing."""

from __future__ import annotations

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
from hpt_mlflow.models.cards import check_types, read_card, write_card
from hpt_mlflow.pixels import RGB, PixelFormat, pixel_format_of

WEIGHTS_FILE = "backbone.safetensors"
CARD_FILE = "backbone.json"
FORMAT = "hpt_mlflow.backbone/1"


@dataclass(frozen=True)
class BackboneCard:
    """Everything needed to use a backbone, apart from its weights.

    Attributes:
        feature_size: length of the features.
        mean, std: channel statistics that images are normalised with, where white is 1.
        chain: names of the datasets that it was trained on, oldest first.
        step: optimiser steps in the last stage.
        pixels: what images are decoded to.
    """

    architecture: Architecture
    feature_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    chain: tuple[str, ...] = field(default=())
    step: int = 0
    pixels: PixelFormat = RGB


def copy_to_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of tensors, so that they can be written while training continues."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def save_backbone(folder: Path, weights: Mapping[str, Tensor], card: BackboneCard) -> None:
    """Write a backbone into a folder, creating it if needed.

    Args:
        weights: its state, on the CPU (see `copy_to_cpu`).
    """
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(dict(weights), folder / WEIGHTS_FILE)
    values = card.architecture.as_settings() | asdict(card)
    del values["architecture"]
    # What has the pixels of every image elsewhere is a file as it always was.
    del values["pixels"]
    if not card.pixels.is_rgb:
        values["pixels"] = card.pixels.as_values()
    write_card(folder / CARD_FILE, FORMAT, values)


def load_backbone(folder: Path, name: str) -> tuple[nn.Module, BackboneCard]:
    """Read a backbone from a folder, at any depth below it.

    Args:
        name: of the model, in errors.

    Returns:
        The backbone on the CPU, in training mode, and its card.

    Raises:
        HptError: there is none, or its files are damaged or do not match.
    """
    cards = sorted(folder.rglob(CARD_FILE))
    if not cards:
        raise HptError(f"{name} was not made by hpt_mlflow: it has no {CARD_FILE}")
    card = read_card(cards[0], FORMAT, name, _make_card)
    backbone, feature_size = build_backbone(card.architecture)
    try:
        backbone.load_state_dict(safetensors.torch.load_file(cards[0].with_name(WEIGHTS_FILE)))
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise HptError(f"{name}: its weights do not fit its {CARD_FILE} or are damaged ({one_line(error)})") from error
    if feature_size != card.feature_size:
        raise HptError(
            f"{name}: {CARD_FILE} says {card.feature_size} features, but {card.architecture.name} has {feature_size}"
        )
    return backbone, card


def _make_card(values: dict[str, Any]) -> BackboneCard:
    types = {"arch": str, "image_size": int, "small_stem": bool, "feature_size": int, "step": int}
    check_types(values, types)
    pixels = pixel_format_of(values.pop("pixels")) if "pixels" in values else RGB
    arch, image_size, small_stem = (values.pop(name) for name in ("arch", "image_size", "small_stem"))
    features = values.pop("features", None) or ""
    architecture = Architecture(arch, image_size, small_stem, pixels.channels, features)
    values |= {key: tuple(values[key]) for key in ("mean", "std", "chain")}
    return BackboneCard(architecture, **values, pixels=pixels)
