"""Registered models from Python: load one, compare two, promote the better one, and see the chain behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor, nn

from hpt_mlflow.data.statistics import ChannelStatistics
from hpt_mlflow.errors import HptError
from hpt_mlflow.evaluation.certainty import Comparison
from hpt_mlflow.evaluation.features import prepare
from hpt_mlflow.models.checkpoint import BackboneCard
from hpt_mlflow.pixels import RGB, PixelFormat
from hpt_mlflow.serving import decode_image
from hpt_mlflow.settings import DEFAULT_MODEL_NAME
from hpt_mlflow.tracking.addresses import concrete_uri
from hpt_mlflow.tracking.connection import connect, tracking_errors
from hpt_mlflow.tracking.models import lineage as chains
from hpt_mlflow.tracking.models import promotion
from hpt_mlflow.tracking.models.alias_history import CHAMPION
from hpt_mlflow.tracking.models.evaluations import Evaluation, common_evaluations
from hpt_mlflow.tracking.models.predictions import compare_evaluations
from hpt_mlflow.tracking.models.store import find_model


@dataclass(frozen=True)
class Transform:
    """An image as a backbone takes it, exactly as evaluations read images.

    The shorter side is resized to the backbone's image size, the centre square is cut out, and the channels are
    normalised with the statistics of the training.
    """

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pixels: PixelFormat = RGB

    def __call__(self, image: Image.Image | np.ndarray | bytes) -> Tensor:
        """Float32 (channels, image_size, image_size).

        Args:
            image: a Pillow image, the bytes of a file, or an array (height, width) or (height, width, bands).

        Raises:
            HptError: it cannot be read.
        """
        decoded = decode_image(image, self.image_size, self.pixels)
        return prepare([decoded], self.image_size, ChannelStatistics(self.mean, self.std))[0]


class LoadedModel(NamedTuple):
    """A backbone from the registry.

    Attributes:
        backbone: on the CPU, in evaluation mode; float32 (N, channels, S, S) to features (N, F) or (N, F, 1, 1).
        transform: what makes one of the N from an image.
        card: architecture, length of the features F, statistics and chain.
    """

    backbone: nn.Module
    transform: Transform
    card: BackboneCard


@dataclass(frozen=True)
class ModelComparison:
    """Two models on the same test images.

    Attributes:
        model_a, model_b: their addresses, without `latest` or alias.
        evaluation_a, evaluation_b: that were compared.
        scores: the scores of both, and their differences with 95% intervals.
    """

    model_a: str
    model_b: str
    evaluation_a: Evaluation
    evaluation_b: Evaluation
    scores: Comparison

    def __str__(self) -> str:
        return verdict(self.model_a, self.model_b, self.scores)


def load_model(model: str) -> LoadedModel:
    """A registered backbone, ready for use.

    Args:
        model: a models:/ or runs:/ address, NAME@ALIAS, or an alias of the model `hpt`.

    Raises:
        HptError: there is no such model.
    """
    connect()
    found = find_model(model, "model", DEFAULT_MODEL_NAME)
    card = found.card
    transform = Transform(card.architecture.image_size, card.mean, card.std, card.pixels)
    return LoadedModel(found.backbone.eval(), transform, card)


def compare(model_a: str, model_b: str) -> ModelComparison:
    """Compare two models by their newest evaluations with the same test images, protocol and metric.

    Intervals are of 95%, by bootstrap over the test images; that of the difference resamples both models together.

    Args:
        model_a, model_b: addresses, as for `load_model`.

    Raises:
        HptError: they have no evaluations that can be compared.
    """
    connect()
    with tracking_errors(f"cannot compare {model_a} and {model_b}"):
        a = concrete_uri(model_a, "model_a", DEFAULT_MODEL_NAME)
        b = concrete_uri(model_b, "model_b", DEFAULT_MODEL_NAME)
        if a == b:
            raise HptError(f"both are {a}", "name two models", setting="model_b")
        evaluation_a, evaluation_b = common_evaluations(a, b)
        scores = compare_evaluations(evaluation_a, evaluation_b)
    return ModelComparison(a, b, evaluation_a, evaluation_b, scores)


def promote(
    model: str,
    alias: str = CHAMPION,
    margin: float = 0.0,
    force: bool = False,
    reason: str = "",
    to: str | None = None,
    standalone: bool = True,
) -> promotion.Promotion:
    """Make a registered version the champion, unless the present one is better on the same test images.

    Args:
        model: address of a registered version.
        alias: to move.
        margin: by how much the score may be worse than the champion's, such as 0.01.
        force: promote whatever the comparison says; takes a reason.
        reason: why it is forced; recorded with who did it and when.
        to: copy the version into this registered model, and promote it there.
        standalone: whether the copy is to need no package but onnxruntime, as it takes hpt_mlflow[onnx] to write.

    Raises:
        HptError: it is worse, or cannot be compared, and is not forced.
    """
    connect()
    return promotion.promote(model, alias, margin, force, reason, to, standalone)


def lineage(model: str) -> list[chains.Node]:
    """The chain behind a model, from the model itself back to random or imported weights.

    Args:
        model: an address, as for `load_model`.

    Raises:
        HptError: there is no such model.
    """
    connect()
    with tracking_errors(f"cannot read what is behind {model}"):
        return chains.lineage(concrete_uri(model, "model", DEFAULT_MODEL_NAME))


def verdict(a: str, b: str, scores: Comparison) -> str:
    """Which model is better, and by how much, in plain words."""
    value, low, high = (100 * number for number in scores.primary.difference)
    metric, on = scores.primary.name, f"on {scores.images:,} test images"
    if not scores.is_shown:
        return f"No difference is shown: {value:+.1f} points of {metric} (95%: {low:.1f} to {high:.1f}) {on}."
    better, sign = (b, 1) if value > 0 else (a, -1)
    low, high = sorted((sign * low, sign * high))
    return f"{better} is better by {abs(value):.1f} points of {metric} (95%: {low:.1f} to {high:.1f}) {on}."
