"""Channel mean and standard deviation of a dataset, computed once and kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from hpt_mlflow.data.cache import cache_folder, keep_json, read_json
from hpt_mlflow.data.dataset import content_digest
from hpt_mlflow.data.decode import conversion
from hpt_mlflow.data.images import Images


@dataclass(frozen=True)
class ChannelStatistics:
    """Mean and standard deviation of red, green and blue, in [0, 1]."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def channel_statistics(images: Sequence[np.ndarray]) -> ChannelStatistics:
    """Statistics over all pixels, each image counting the same whatever its size.

    Args:
        images: uint8 (height, width, 3).
    """
    mean, square = np.zeros(3), np.zeros(3)
    for image in images:
        values = image.reshape(-1, 3).astype(np.float32) / 255
        mean += values.mean(axis=0, dtype=np.float64)
        square += (values**2).mean(axis=0, dtype=np.float64)
    mean, square = mean / len(images), square / len(images)
    # A channel without any variation would be divided by zero.
    std = np.sqrt(np.maximum(square - mean**2, 1e-6))
    return ChannelStatistics(_three(mean), _three(std))


def kept_channel_statistics(images: Images) -> ChannelStatistics:
    """The statistics of `images.sample`, computed once for the same contents."""
    contents = images.dataset.contents.of(images.sample_indices)
    key = f"{content_digest(contents)}-{images.smallest_side}-{conversion()}"
    file = cache_folder() / "channel-statistics" / f"{key}.json"
    statistics = read_json(
        file, lambda kept: ChannelStatistics(_three(np.array(kept["mean"])), _three(np.array(kept["std"])))
    )
    if statistics is None:
        statistics = channel_statistics(images.sample)
        keep_json(file, asdict(statistics))
    return statistics


def _three(values: np.ndarray) -> tuple[float, float, float]:
    red, green, blue = values.round(6).tolist()
    return red, green, blue
