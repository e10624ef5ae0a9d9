"""A classifier as files next to those of its backbone: a linear head in safetensors, its classes in JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from hpt_mlflow.errors import HptError, one_line
from hpt_mlflow.models.cards import check_types, read_card, write_card

HEAD_FILE = "classifier.safetensors"
CLASSIFIER_FILE = "classifier.json"
FORMAT = "hpt_mlflow.classifier/1"
HEAD_TENSORS = ("mean", "std", "weight", "bias")


@dataclass(frozen=True)
class ClassifierCard:
    """Everything needed to use a linear head, apart from its weights.

    Attributes:
        classes: names of the classes, or of the labels, in the order of the head's outputs.
        multilabel: whether an image may have several labels.
        dataset: name of the dataset that it was trained on.
        protocol: how it was trained: `fast`, `paper` or `finetune`.
        resize_to: length in pixels to which the shorter side of an image is resized before the central crop; None for
            the side of the crop.
    """

    classes: tuple[str, ...]
    multilabel: bool
    dataset: str
    protocol: str
    resize_to: int | None = None


def save_classifier(folder: Path, head: Mapping[str, Tensor], card: ClassifierCard) -> None:
    """Write a head into the folder of its backbone.

    Args:
        head: float32 `mean` and `std` (F,), `weight` (F, C) and `bias` (C,), on the CPU.
    """
    safetensors.torch.save_file({name: head[name].contiguous() for name in HEAD_TENSORS}, folder / HEAD_FILE)
    write_card(folder / CLASSIFIER_FILE, FORMAT, asdict(card))


def load_classifier(folder: Path, name: str, feature_size: int) -> tuple[dict[str, Tensor], ClassifierCard] | None:
    """Read the head in a folder, at any depth below it; None if there is none.

    Args:
        name: of the model, in errors.
        feature_size: of its backbone.

    Raises:
        HptError: its files are damaged, or do not match each other or the backbone.
    """
    cards = sorted(folder.rglob(CLASSIFIER_FILE))
    if not cards:
        return None
    card = read_card(cards[0], FORMAT, name, _make_card)
    try:
        tensors = safetensors.torch.load_file(cards[0].with_name(HEAD_FILE))
        head = {key: tensors[key] for key in HEAD_TENSORS}
    except (OSError, KeyError, safetensors.SafetensorError) as error:
        raise HptError(f"{name}: {HEAD_FILE} is missing or damaged ({one_line(error)})") from error
    outputs = len(card.classes)
    vector = (feature_size,)
    shapes = {"mean": vector, "std": vector, "weight": (feature_size, outputs), "bias": (outputs,)}
    for key, tensor in head.items():
        if tuple(tensor.shape) != shapes[key] or tensor.dtype != torch.float32:
            raise HptError(
                f"{name}: its head does not fit {feature_size} features and {outputs} classes: {key} is {tensor.dtype} "
                f"{tuple(tensor.shape)}, not torch.float32 {shapes[key]}"
            )
    return head, card


def _make_card(values: dict[str, Any]) -> ClassifierCard:
    check_types(values, {"classes": list, "multilabel": bool, "dataset": str, "protocol": str})
    card = ClassifierCard(**values | {"classes": tuple(values["classes"])})
    if not all(isinstance(name, str) for name in card.classes):
        raise TypeError("classes are not all names")
    if card.resize_to is not None and not (type(card.resize_to) is int and card.resize_to > 0):
        raise TypeError(f"resize_to is {card.resize_to!r}")
    return card
