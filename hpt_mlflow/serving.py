"""A registered backbone as an MLflow pyfunc model: images in, embeddings out.

MLflow imports this module by the name in the model's MLmodel file. It comes with the installed package, not with the
model, so that loading a model runs no code that came along with it.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import nn

from hpt_mlflow.data.decode import Encoded, UnreadableImageError, decode
from hpt_mlflow.data.statistics import ChannelStatistics
from hpt_mlflow.errors import HptError
from hpt_mlflow.evaluation.features import prepare
from hpt_mlflow.models.checkpoint import BackboneCard, load_backbone

BATCH_SIZE = 64


class EmbeddingModel:
    """What `mlflow.pyfunc.load_model(...)` wraps."""

    def __init__(self, backbone: nn.Module, card: BackboneCard) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.backbone = backbone.to(self.device).eval()
        self.card = card

    @torch.inference_mode()
    def predict(self, images: Any, params: dict[str, Any] | None = None) -> np.ndarray:
        """Embed images.

        Args:
            images: uint8 array (N, height, width, 3), (N, height, width) or (height, width, 3); or a list, or the first
                column of a data frame, of encoded files as bytes or base64 text, arrays, or Pillow images.
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
            decoded = [_decode(picture, start + i) for i, picture in enumerate(pictures[start : start + BATCH_SIZE])]
            batch = prepare(decoded, self.card.image_size, statistics).to(self.device)
            embeddings.append(self.backbone(batch).flatten(1).float().cpu())
        return torch.cat(embeddings).numpy() if embeddings else np.empty((0, self.card.feature_size), np.float32)


def _load_pyfunc(path: str) -> EmbeddingModel:
    """What MLflow calls."""
    return EmbeddingModel(*load_backbone(Path(path), path))


def _pictures(images: Any) -> Sequence[Any]:
    """One entry an image."""
    if isinstance(images, pd.DataFrame):
        return list(images.iloc[:, 0])
    if isinstance(images, dict):
        return _pictures(next(iter(images.values())))
    if isinstance(images, bytes | str | Image.Image):
        return [images]
    if isinstance(images, np.ndarray) and images.dtype != object:
        is_one = images.ndim == 2 or (images.ndim == 3 and images.shape[-1] in (3, 4) and images.shape[0] not in (3, 4))
        return list(images[None] if is_one and images.dtype.kind not in "SU" else images)
    return list(images)


def _decode(picture: Any, position: int) -> np.ndarray:
    try:
        return decode(_encoded(picture))
    except (UnreadableImageError, binascii.Error, ValueError) as error:
        raise HptError(f"image {position} cannot be read: {error}") from error


def _encoded(picture: Any) -> Encoded:
    if isinstance(picture, str):
        return base64.b64decode(picture, validate=True)
    if isinstance(picture, bytes | Image.Image):
        return picture
    values = np.asarray(picture)
    # JSON knows whole numbers, but not how wide they are.
    if (
        values.dtype.kind in "iu"
        and values.dtype != np.uint16
        and values.size
        and values.min() >= 0
        and values.max() <= 255
    ):
        return values.astype(np.uint8)
    return values
