"""Registered models as MLflow pyfunc models: images in, embeddings out; of a classifier, labels and probabilities.

MLflow imports this module by the name in the model's MLmodel file. It comes with the installed package, not with the
model, so that loading a model runs no code that came along with it.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import nn

from hpt_mlflow.augment.crop import smallest_useful_side
from hpt_mlflow.data.decode import Encoded, UnreadableImageError, decode
from hpt_mlflow.data.statistics import ChannelStatistics
from hpt_mlflow.errors import HptError
from hpt_mlflow.evaluation.features import prepare
from hpt_mlflow.evaluation.head import LinearHead
from hpt_mlflow.evaluation.labelled_views import CROP_SCALE
from hpt_mlflow.models.checkpoint import BackboneCard, load_backbone
from hpt_mlflow.models.classifier import ClassifierCard, load_classifier

BATCH_SIZE = 64
# A label that stands on its own is given from this probability on.
LABEL_THRESHOLD = 0.5


class EmbeddingModel:
    """What `mlflow.pyfunc.load_model(...)` wraps for a backbone."""

    def __init__(
        self,
        backbone: nn.Module,
        card: BackboneCard,
        device: torch.device | None = None,
        resize_to: int | None = None,
    ) -> None:
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.backbone = backbone.to(self.device).eval()
        self.card = card
        self.resize_to = resize_to
        # As evaluations read images, so that what is served is what was evaluated.
        self.smallest_side = card.image_size if resize_to is None else smallest_useful_side(card.image_size, CROP_SCALE)

    @torch.inference_mode()
    def predict(self, images: Any, params: dict[str, Any] | None = None) -> np.ndarray:
        """Embed images.

        Args:
            images: array or nested lists of numbers (N, height, width, 3), (N, height, width), (height, width, 3) or
                (height, width), of which the last two are one image; or a list, or the first column of a data frame, of
                encoded files as bytes, bytearray, memoryview or base64 text, of arrays, or of Pillow images.
            params: not used.

        Returns:
            float32 (N, feature size).

        Raises:
            HptError: an image cannot be read; says which.
        """
        pictures = _pictures(images)
        statistics = ChannelStatistics(self.card.mean, self.card.std)
        embeddings = []
        for start in range(0, len(pictures), BATCH_SIZE):
            chosen = enumerate(pictures[start : start + BATCH_SIZE], start)
            decoded = [_decode(picture, position, self.smallest_side) for position, picture in chosen]
            batch = prepare(decoded, self.card.image_size, statistics, self.resize_to).to(self.device)
            embeddings.append(self.backbone(batch).flatten(1).float().cpu())
        return torch.cat(embeddings).numpy() if embeddings else np.empty((0, self.card.feature_size), np.float32)


class ClassifierModel:
    """What `mlflow.pyfunc.load_model(...)` wraps for a classifier."""

    def __init__(self, embedding: EmbeddingModel, head: LinearHead, card: ClassifierCard) -> None:
        self.embedding = embedding
        self.head = head
        self.card = card

    def predict(self, images: Any, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Classify images.

        Args:
            images: as for `EmbeddingModel.predict`.
            params: not used.

        Returns:
            One row an image: `label` and its `probability`, or, where labels stand each on its own, `labels`, those of
            at least 0.5; and `probabilities` of all by name.

        Raises:
            HptError: an image cannot be read; says which.
        """
        return answers(self.probabilities(images), self.card)

    def probabilities(self, images: Any) -> np.ndarray:
        """Probabilities of all classes or labels, float64 (N, C); of images as for `EmbeddingModel.predict`."""
        return self.head.probabilities(self.embedding.predict(images))


def answers(probabilities: np.ndarray, card: ClassifierCard) -> pd.DataFrame:
    """What a classifier says, from its probabilities, float64 (N, C)."""
    by_name = [dict(zip(card.classes, map(float, row), strict=True)) for row in probabilities]
    if card.multilabel:
        labels = [[name for name, share in row.items() if share >= LABEL_THRESHOLD] for row in by_name]
        return pd.DataFrame({"labels": labels, "probabilities": by_name})
    best = probabilities.argmax(axis=1) if len(probabilities) else []
    return pd.DataFrame(
        {
            "label": [card.classes[i] for i in best],
            "probability": [float(row[i]) for row, i in zip(probabilities, best, strict=True)],
            "probabilities": by_name,
        }
    )


def load_served(folder: Path, name: str, device: torch.device | None = None) -> EmbeddingModel | ClassifierModel:
    """The model in a folder: a classifier where there is a head, else its backbone.

    Args:
        name: how errors call it.
        device: where it computes; None for a GPU where there is one.

    Raises:
        HptError: there is none, or its files are damaged or do not fit together.
    """
    backbone, card = load_backbone(folder, name)
    classifier = load_classifier(folder, name, card.feature_size)
    if classifier is None:
        return EmbeddingModel(backbone, card, device)
    tensors, classifier_card = classifier
    embedding = EmbeddingModel(backbone, card, device, classifier_card.resize_to)
    return ClassifierModel(embedding, LinearHead(**tensors, multilabel=classifier_card.multilabel), classifier_card)


def _load_pyfunc(path: str) -> EmbeddingModel | ClassifierModel:
    """What MLflow calls."""
    return load_served(Path(path), path)


def _pictures(images: Any) -> Sequence[Any]:
    """One entry per image."""
    if isinstance(images, pd.DataFrame):
        return list(images.iloc[:, 0])
    if isinstance(images, dict):
        return _pictures(next(iter(images.values())))
    if _is_encoded(images) or isinstance(images, Image.Image):
        return [images]
    if isinstance(images, list | tuple) and images and isinstance(images[0], list | tuple | int | float):
        # Of images of several sizes, nested lists make no array.
        with suppress(ValueError):
            images = _array(images)
    if isinstance(images, np.ndarray) and images.dtype.kind not in "OSU":
        is_one = images.ndim == 2 or (images.ndim == 3 and images.shape[-1] in (3, 4) and images.shape[0] not in (3, 4))
        return list(images[None] if is_one else images)
    return list(images)


def _is_encoded(picture: Any) -> bool:
    """Whether a picture is the bytes of a file, as Python or Spark hold them, or base64 text of them."""
    if isinstance(picture, memoryview):
        return picture.ndim == 1 and picture.itemsize == 1
    return isinstance(picture, bytes | bytearray | str)


def _decode(picture: Any, position: int, smallest_side: int) -> np.ndarray:
    try:
        return decode(_encoded(picture), smallest_side)
    except (UnreadableImageError, binascii.Error, ValueError) as error:
        raise HptError(f"image {position} cannot be read: {error}") from error


def _encoded(picture: Any) -> Encoded:
    if isinstance(picture, str):
        return base64.b64decode(picture, validate=True)
    if isinstance(picture, Image.Image):
        return picture
    if _is_encoded(picture):
        return bytes(picture)
    values = _array(picture)
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] not in (1, 3, 4)) or not values.size:
        raise ValueError(
            f"an array of shape {values.shape} is not an image; give (height, width), or (height, width, 1, 3 or 4) "
            "with the channels last"
        )
    if values.dtype == bool:
        return values.astype(np.uint8) * 255
    # JSON knows whole numbers, but not how wide they are.
    if values.dtype.kind in "iu" and values.dtype != np.uint16 and values.min() >= 0 and values.max() <= 255:
        return values.astype(np.uint8)
    return values


def _array(values: Any) -> np.ndarray:
    """Numbers as an array.

    Raises:
        ValueError: they are no numbers, or rows differ in length.
    """
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise ValueError(
            f"{type(values).__name__} is not an image; give the bytes of a file, base64 text of them, a Pillow image, "
            "or an array of numbers"
        )
    return array
