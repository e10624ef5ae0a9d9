"""A backbone as two files: weights in safetensors, everything else in JSON. Reading them executes nothing.

In place of the weights there may be their difference from those of a registered version (`delta`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import safetensors
import safetensors.torch
from torch import Tensor, nn

from hpt_mlflow.errors import HptError, one_line
from hpt_mlflow.models.architecture import Architecture
from hpt_mlflow.models.backbone import build_backbone
from hpt_mlflow.models.cards import check_types, read_card, write_card
from hpt_mlflow.models.delta import (
    DELTA_CARD_FILE,
    DELTA_FILE,
    DeltaCard,
    DeltaParent,
    digest_of,
    put_together,
    read_delta_card,
    save_delta,
)
from hpt_mlflow.models.lora import merged
from hpt_mlflow.pixels import RGB, PixelFormat, pixel_format_of

WEIGHTS_FILE = "backbone.safetensors"
CARD_FILE = "backbone.json"
FORMAT = "hpt_mlflow.backbone/1"
# The folder of a registered version, from its address and whose parent it is, for errors.
FindParent: TypeAlias = Callable[[str, str], Path]


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


def save_backbone(
    folder: Path, state: Mapping[str, Tensor], card: BackboneCard, parent: DeltaParent | None = None
) -> None:
    """Write a backbone into a folder, creating it if needed.

    Args:
        state: of the backbone, on the CPU (see `copy_to_cpu`); low-rank changes are merged.
        parent: to keep only the difference from it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if parent is None:
        safetensors.torch.save_file(merged(state), folder / WEIGHTS_FILE)
    else:
        save_delta(folder, state, parent)
    values = card.architecture.as_settings() | asdict(card)
    del values["architecture"]
    # What has the pixels of every image elsewhere is a file as it always was.
    del values["pixels"]
    if not card.pixels.is_rgb:
        values["pixels"] = card.pixels.as_values()
    write_card(folder / CARD_FILE, FORMAT, values)


def load_backbone(folder: Path, name: str, find_parent: FindParent | None = None) -> tuple[nn.Module, BackboneCard]:
    """Read a backbone from a folder, at any depth below it.

    Args:
        name: of the model, in errors.
        find_parent: finds the parents of a difference; None if there is no registry to ask.

    Returns:
        The backbone on the CPU, in training mode, and its card.

    Raises:
        HptError: there is none, its files are damaged or do not match, or a parent is gone or not what it was.
    """
    card_file = _card_file(folder, name)
    card = read_card(card_file, FORMAT, name, _make_card)
    backbone, feature_size = build_backbone(card.architecture)
    try:
        backbone.load_state_dict(_read_weights(card_file.parent, name, find_parent))
    except (RuntimeError, KeyError) as error:
        raise HptError(f"{name}: its weights do not fit its {CARD_FILE} ({one_line(error)})") from error
    if feature_size != card.feature_size:
        raise HptError(
            f"{name}: {CARD_FILE} says {card.feature_size} features, but {card.architecture.name} has {feature_size}"
        )
    return backbone, card


def replace_difference(folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Let a folder, at any depth below it, hold whole weights in place of a difference, if it holds one."""
    place = _card_file(folder, str(folder)).parent
    if (place / DELTA_CARD_FILE).is_file():
        safetensors.torch.save_file(dict(weights), place / WEIGHTS_FILE)
        (place / DELTA_CARD_FILE).unlink()
        (place / DELTA_FILE).unlink()


def _card_file(folder: Path, name: str) -> Path:
    cards = sorted(folder.rglob(CARD_FILE))
    if not cards:
        raise HptError(f"{name} was not made by hpt_mlflow: it has no {CARD_FILE}")
    return cards[0]


def _read_weights(folder: Path, name: str, find_parent: FindParent | None) -> dict[str, Tensor]:
    """The whole weights in a folder; those of a difference are put together with its parent's, back to a whole one."""
    differences: list[tuple[Path, DeltaCard, str]] = []
    called = name
    while card := read_delta_card(folder, called):
        if find_parent is None:
            raise HptError(
                f"{card.of(name)}, and does not stand alone",
                "make a whole version of it with hpt make-whole, and use that",
            )
        if card.parent in [newer.parent for _, newer, _ in differences]:
            raise HptError(f"{name}: {DELTA_CARD_FILE} is damaged, as {card.parent} would be its own parent")
        differences.append((folder, card, called))
        folder = _card_file(find_parent(card.parent, card.of(called)), card.parent).parent
        called = f"{name}: its parent {card.parent}"
    weights = _read_tensors(folder / WEIGHTS_FILE, called)
    digest = digest_of(weights) if differences else ""
    for folder, card, called in reversed(differences):
        if digest != card.parent_sha256:
            raise HptError(
                f"{card.of(called)}, whose weights are not those of then (sha256 {digest[:12]}, then "
                f"{card.parent_sha256[:12]})",
                "adapt again, or use another version",
            )
        weights = put_together(weights, _read_tensors(folder / DELTA_FILE, called))
        digest = digest_of(weights)
        if digest != card.sha256:
            raise HptError(f"{card.of(called)}, but its {DELTA_FILE} is damaged: its sha256 is not that of then")
    return weights


def _read_tensors(file: Path, name: str) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(file)
    except (OSError, safetensors.SafetensorError) as error:
        raise HptError(f"{name}: its weights are missing or damaged ({one_line(error)})") from error


def _make_card(values: dict[str, Any]) -> BackboneCard:
    types = {"arch": str, "image_size": int, "small_stem": bool, "feature_size": int, "step": int}
    check_types(values, types)
    pixels = pixel_format_of(values.pop("pixels")) if "pixels" in values else RGB
    arch, image_size, small_stem = (values.pop(name) for name in ("arch", "image_size", "small_stem"))
    features = values.pop("features", None) or ""
    architecture = Architecture(arch, image_size, small_stem, pixels.channels, features)
    values |= {key: tuple(values[key]) for key in ("mean", "std", "chain")}
    return BackboneCard(architecture, **values, pixels=pixels)
