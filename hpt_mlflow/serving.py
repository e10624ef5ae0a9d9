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

from hpt_mlflow.augment.crop import centre_crop, smallest_useful_side
from hpt_mlflow.data.decode import decode
from hpt_mlflow.data.errors import UnreadableImageError
from hpt_mlflow.data.pictures import Encoded
from hpt_mlflow.data.statistics import ChannelStatistics
from hpt_mlflow.errors import HptError, one_line
from hpt_mlflow.evaluation.features import to_input
from hpt_mlflow.evaluation.head import LinearHead
from hpt_mlflow.evaluation.labelled_views import CROP_SCALE
from hpt_mlflow.models.checkpoint import BackboneCard, FindParent, load_backbone
from hpt_mlflow.models.classifier import ClassifierCard, load_classifier
from hpt_mlflow.pixels import PixelFormat

BATCH_SIZE = 64
# A label that stands on its own is given from this probability on.
LABEL_THRESHOLD = 0.5
CHANNELS = (1, 3, 4)
# Types that hold an encoded file; text is base64.
ENCODED = (str, bytes, bytearray, memoryview)
SHAPES = "(height, width), or (height, width, 1, 3 or 4) with the channels last"


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
        self.smallest_side = (
            card.architecture.image_size
            if resize_to is None
            else smallest_useful_side(card.architecture.image_size, CROP_SCALE)
        )

    def predict(self, images: Any, params: dict[str, Any] | None = None) -> np.ndarray:
        """Embed images.

        Args:
            images: array, tensor or nested lists of numbers (N, height, width, channels), (N, height, width), or, of
                one image, (height, width, channels) or (height, width); there are 1, 3 or 4 channels, so that three
                dimensions of which the last is one of these are one image. Numbers are 0 to 255, 0 to 65,535 in uint16,
                or shares of white from 0 to 1. Or a list, or the first column of a data frame, of encoded files, as
                bytes in any type that holds them or as base64 text, of arrays, or of Pillow images. A model of deep
                images or of several bands (`card.pixels`) takes the numbers that are in its files, and all bands; of
                several bands, three dimensions are one image.
            params: not used.

        Returns:
            float32 (N, feature size).

        Raises:
            HptError: an image cannot be read, says which; or the images are none of these.
        """
        pictures = _pictures(images, self.card.pixels)
        embeddings = [np.empty((0, self.card.feature_size), np.float32)]
        for start in range(0, len(pictures), BATCH_SIZE):
            chosen = enumerate(pictures[start : start + BATCH_SIZE], start)
            decoded = [
                decode_image(picture, self.smallest_side, self.card.pixels, f"image {position}")
                for position, picture in chosen
            ]
            embeddings.append(self.embed([self.crop(image) for image in decoded]))
        return np.concatenate(embeddings)

    def crop(self, image: np.ndarray) -> np.ndarray:
        """The square of a decoded image that the network sees."""
        return centre_crop(image, self.card.architecture.image_size, self.resize_to)

    @property
    def square_bytes(self) -> int:
        """Size of a square that `crop` gives."""
        return self.card.architecture.image_size**2 * self.card.pixels.pixel_bytes

    @torch.inference_mode()
    def embed(self, squares: list[np.ndarray]) -> np.ndarray:
        """Features of squares that `crop` gives, float32 (N, feature size)."""
        batch = to_input(squares, ChannelStatistics(self.card.mean, self.card.std), self.device)
        features: np.ndarray = self.backbone(batch).flatten(1).float().cpu().numpy()
        return features


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
            One row per image: `label` and its `probability`, or, for a multi-label classifier, `labels`, those of
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


def load_served(
    folder: Path, name: str, device: torch.device | None = None, find_parent: FindParent | None = None
) -> EmbeddingModel | ClassifierModel:
    """The model in a folder: a classifier if there is a head, else its backbone.

    Args:
        name: how errors call it.
        device: where it computes; None for a GPU if there is one.
        find_parent: see `load_backbone`.

    Raises:
        HptError: there is none, or its files are damaged or do not fit together.
    """
    backbone, card = load_backbone(folder, name, find_parent)
    classifier = load_classifier(folder, name, card.feature_size)
    if classifier is None:
        return EmbeddingModel(backbone, card, device)
    tensors, classifier_card = classifier
    embedding = EmbeddingModel(backbone, card, device, classifier_card.resize_to)
    return ClassifierModel(embedding, LinearHead(**tensors, multilabel=classifier_card.multilabel), classifier_card)


def _load_pyfunc(path: str) -> EmbeddingModel | ClassifierModel:
    """What MLflow calls."""
    return load_served(Path(path), path)


def _pictures(images: Any, pixels: PixelFormat) -> Sequence[Any]:
    """One entry per image.

    Raises:
        HptError: they are nothing that holds images, or an array of a shape that images do not have.
    """
    if isinstance(images, pd.DataFrame):
        return list(images.iloc[:, 0]) if len(images.columns) else []
    if isinstance(images, dict):
        return _pictures(next(iter(images.values()), []), pixels)
    if isinstance(images, (*ENCODED, Image.Image)):
        return [images]
    if isinstance(images, list | tuple) and images and isinstance(images[0], list | tuple | int | float):
        # Of images of several sizes, nested lists make no array.
        with suppress(ValueError):
            images = _array(images)
    elif hasattr(images, "__array__"):
        # A tensor of one image would give its rows.
        try:
            images = _as_array(images)
        except ValueError as error:
            raise HptError(f"the images cannot be read: {error}") from error
    if isinstance(images, np.ndarray):
        return _of_array(images, pixels)
    try:
        return list(images)
    except TypeError as error:
        raise HptError(f"{type(images).__name__} does not hold images", "give a list of them, or an array") from error


def _of_array(images: np.ndarray, pixels: PixelFormat) -> Sequence[Any]:
    """One entry per image of an array: of numbers, or of files and other objects, of which it may be a column."""
    if images.dtype.kind in "OU":
        return list(np.atleast_1d(images[:, 0] if images.shape[1:] == (1,) else images))
    if images.size and images.ndim not in (2, 3, 4):
        raise HptError(f"an array of shape {images.shape} does not hold images", f"give {SHAPES}, or several of them")
    is_one = images.ndim == 2 or (images.ndim == 3 and (bool(pixels.bands) or images.shape[-1] in CHANNELS))
    return list(images[None] if is_one else images)


def decode_image(picture: Any, smallest_side: int, pixels: PixelFormat, name: str = "the image") -> np.ndarray:
    """One image as (height, width, channels), from any form that `EmbeddingModel.predict` takes.

    Args:
        smallest_side, pixels: see `decode`.
        name: what errors call it.

    Raises:
        HptError: it cannot be read.
    """
    try:
        return decode(_encoded(picture, pixels), smallest_side, pixels)
    except (UnreadableImageError, binascii.Error, ValueError) as error:
        raise HptError(f"{name} cannot be read: {error}") from error


def _encoded(picture: Any, pixels: PixelFormat) -> Encoded:
    if hasattr(picture, "as_py"):
        # A value of an Arrow column.
        picture = picture.as_py()
    if isinstance(picture, str):
        return base64.b64decode(picture, validate=True)
    if isinstance(picture, Image.Image):
        return picture
    if isinstance(picture, bytes | bytearray | memoryview):
        return bytes(picture)
    values = _array(picture)
    if not pixels.is_rgb:
        return values
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] not in CHANNELS) or not values.size:
        what = f"an array of shape {values.shape}" if values.ndim else f"the number {values}"
        raise ValueError(f"{what} is not an image; give {SHAPES}")
    if values.ndim == 2 and values.shape[1] in CHANNELS:
        raise ValueError(
            f"an array of shape {values.shape} may be one line of a colour image or a very narrow grey one; give whole "
            f"images, {SHAPES}"
        )
    # Of grey, as of elevations, the range is the picture's own; colours below black were meant for something else.
    if values.ndim == 3 and values.shape[2] > 1 and values.min() < 0:
        raise ValueError(
            f"values from {values.min():.6g} to {values.max():.6g} are not colours; give them as they are in the file, "
            "0 to 255, or as shares of white from 0 to 1"
        )
    # JSON knows whole numbers, but not how wide they are.
    if values.dtype.kind in "iu" and values.dtype != np.uint16 and values.min() >= 0 and values.max() <= 255:
        return values.astype(np.uint8)
    return values


def _array(values: Any) -> np.ndarray:
    """Numbers as an array.

    Raises:
        ValueError: they are no numbers, or rows differ in length.
    """
    array = _as_array(values)
    if array.dtype.kind not in "biuf":
        what = f"an array of {array.dtype}" if isinstance(values, np.ndarray) else type(values).__name__
        raise ValueError(
            f"{what} is not an image; give the bytes of a file, base64 text of them, a Pillow image, or an array of "
            "numbers"
        )
    return array


def _as_array(values: Any) -> np.ndarray:
    """As numpy makes it.

    Raises:
        ValueError: rows differ in length, or it is a tensor that numpy cannot read, as on a GPU.
    """
    try:
        return np.asarray(values)
    except (TypeError, RuntimeError) as error:
        raise ValueError(one_line(error)) from error
