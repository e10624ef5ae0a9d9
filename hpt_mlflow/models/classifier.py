"""A classifier as files beside those of its backbone: a linear head in safetensors, its classes in JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from hpt_mlflow.errors import HptError, one_line

HEAD_FILE = "classifier.safetensors"
CLASSIFIER_FILE = "classifier.json"
FORMAT = "hpt_mlflow.classifier/1"
HEAD_TENSORS = ("mean", "std", "weight", "bias")


@dataclass(frozen=True)
class ClassifierCard:
    """What one must know to use a linear head.

    Attributes:
        classes: names of the classes, or of the labels, in the order of the head's outputs.
        multilabel: whether each label is decided on its own.
        dataset: name of the dataset that it was trained on.
        protocol: how it was trained: `fast`, `paper` or `finetune`.
        resize_to: pixels of the shorter side that images are resized to before the central square is cut; None for
            the side of that square.
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
    (folder / CLASSIFIER_FILE).write_text(json.dumps({"format": FORMAT, **asdict(card)}, indent=2) + "\n")


def load_classifier(folder: Path, name: str, feature_size: int) -> tuple[dict[str, Tensor], ClassifierCard] | None:
    """Read the head that lies in a folder, at any depth below it; None where there is none.

    Args:
        name: how errors call it.
        feature_size: of the backbone that it stands on.

    Raises:
        HptError: its files are damaged, or do not fit together or the backbone.
    """
    cards = sorted(folder.rglob(CLASSIFIER_FILE))
    if not cards:
        return None
    card = _read_card(cards[0], name)
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


def _read_card(file: Path, name: str) -> ClassifierCard:
    try:
        values = json.loads(file.read_text())
        if values.pop("format") != FORMAT:
            raise HptError(f"{name} was made by another version of hpt_mlflow; this one reads {FORMAT}")
        card = ClassifierCard(**(values | {"classes": tuple(values["classes"])}))
        if not isinstance(values["classes"], list) or not all(isinstance(one, str) for one in card.classes):
            raise TypeError("classes is no list of names")
        for key, kind in {"multilabel": bool, "dataset": str, "protocol": str}.items():
            if type(getattr(card, key)) is not kind:
                raise TypeError(f"{key} is {getattr(card, key)!r}")
        if card.resize_to is not None and not (type(card.resize_to) is int and card.resize_to > 0):
            raise TypeError(f"resize_to is {card.resize_to!r}")
        return card
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise HptError(f"{name}: {CLASSIFIER_FILE} is damaged ({one_line(error)})") from error
