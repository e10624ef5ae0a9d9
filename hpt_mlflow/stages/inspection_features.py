"""Images that are alike by the features of a registered model, for an inspection."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hpt_mlflow.data.perceptual import WHOLE
from hpt_mlflow.data.pixel_range import pixels_for
from hpt_mlflow.data.squares import square_batches, square_of
from hpt_mlflow.data.statistics import ChannelStatistics
from hpt_mlflow.evaluation.features import FrozenNetwork, feature_precision, to_input
from hpt_mlflow.inspection.near import NearPairs
from hpt_mlflow.inspection.search import Neighbours
from hpt_mlflow.inspection.survey import Survey
from hpt_mlflow.serving import ClassifierModel, EmbeddingModel
from hpt_mlflow.settings import InspectSettings
from hpt_mlflow.stages.processes.device import resolve_device
from hpt_mlflow.stages.progress import show_steps
from hpt_mlflow.tracking.models.store import find_served

# Of each image.
MOST_NEIGHBOURS = 10


def alike_pairs(
    chosen: InspectSettings, uri: str, surveys: Sequence[Survey], near: NearPairs | None, folder: Path
) -> NearPairs:
    """Pairs of images whose features have at least the chosen cosine, and that are not among the near copies.

    Args:
        uri: address of the model.
        folder: for the features, which are kept in 16 bits in a file.
    """
    device = resolve_device(chosen.device)
    model = find_served(uri, uri, device)
    embedding = model.embedding if isinstance(model, ClassifierModel) else model
    total = sum(len(survey.dataset) for survey in surveys)
    features = np.memmap(folder / "features", np.float16, "w+", shape=(total, embedding.card.feature_size))
    for survey in surveys:
        _write_features(chosen, embedding, survey, features)
    one, other, cosine = Neighbours(features).within(features, MOST_NEIGHBOURS + 1, chosen.similarity)
    keys, first = np.unique(_keys(one, other, total), return_index=True)
    known = _keys(near.one, near.other, total) if near is not None else np.array([], np.int64)
    chosen_rows = first[(one[first] != other[first]) & ~np.isin(keys, known)]
    count = len(chosen_rows)
    return NearPairs(
        one[chosen_rows],
        other[chosen_rows],
        np.maximum(0, 1 - cosine[chosen_rows]),
        np.tile(np.array(WHOLE), (count, 1)),
        np.zeros(count, bool),
    )


def _write_features(chosen: InspectSettings, embedding: EmbeddingModel, survey: Survey, features: np.ndarray) -> None:
    """Write the features of a dataset's images, of length 1, to their places; those of unreadable ones stay 0."""
    card, network = embedding.card, FrozenNetwork(embedding.backbone)
    precision = feature_precision("auto", embedding.device)
    statistics = ChannelStatistics(card.mean, card.std)
    show, shown, start = show_steps(f"features of {survey.dataset.name}"), survey.shown, 0
    pixels = pixels_for(survey.dataset, card.pixels)
    batches = square_batches(
        square_of(survey.dataset, embedding.smallest_side, pixels, embedding.crop),
        shown.tolist(),
        chosen.batch_size,
        embedding.square_bytes,
        embedding.device,
        chosen.workers,
    )
    for images in batches:
        places = survey.first + shown[start : start + len(images)]
        start += len(images)
        readable = [not isinstance(image, str) for image in images]
        if any(readable):
            squares = [image for image in images if not isinstance(image, str)]
            found = network.features(to_input(squares, statistics, embedding.device), precision).cpu().numpy()
            length = np.linalg.norm(found, axis=1, keepdims=True)
            features[places[readable]] = found / np.maximum(length, 1e-12)
        show(start, len(shown))


def _keys(one: np.ndarray, other: np.ndarray, total: int) -> np.ndarray:
    """A number for each unordered pair, int64 (P,)."""
    return np.minimum(one, other) * total + np.maximum(one, other)
