"""Channel mean and standard deviation of a dataset, computed once and kept."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from hpt_mlflow.data.cache import cache_folder, keep_json, read_json
from hpt_mlflow.data.dataset import content_digest
from hpt_mlflow.data.decode import conversion
from hpt_mlflow.data.images import Images


@dataclass(frozen=True)
class ChannelStatistics:
    """Mean and standard deviation of each channel, where white is 1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def channel_statistics(images: Sequence[np.ndarray]) -> ChannelStatistics:
    """Statistics over all pixels, each image counting the same whatever its size.

    Args:
        images: uint8 or uint16 (height, width, channels).
    """
    channels, white = images[0].shape[2], np.iinfo(images[0].dtype).max
    mean, square = np.zeros(channels), np.zeros(channels)
    for image in images:
        values = image.reshape(-1, channels).astype(np.float32) / white
        mean += values.mean(axis=0, dtype=np.float64)
        square += (values**2).mean(axis=0, dtype=np.float64)
    mean, square = mean / len(images), square / len(images)
    # A channel without any variation would be divided by zero.
    std = np.sqrt(np.maximum(square - mean**2, 1e-6))
    return ChannelStatistics(tuple(mean.round(6).tolist()), tuple(std.round(6).tolist()))


def kept_channel_statistics(images: Images) -> ChannelStatistics:
    """The statistics of `images.sample`, computed once for the same contents."""
    contents = images.dataset.contents.of(images.sample_indices)
    key = f"{content_digest(contents)}-{images.smallest_side}-{conversion()}"
    if not images.pixels.is_rgb:
        key += f"-{hashlib.sha256(repr(images.pixels).encode()).hexdigest()[:16]}"
    file = cache_folder() / "channel-statistics" / f"{key}.json"
    statistics = read_json(
        file, lambda kept: ChannelStatistics(*(tuple(map(float, kept[name])) for name in ("mean", "std")))
    )
    channels = images.pixels.channels
    if statistics is None or not len(statistics.mean) == len(statistics.std) == channels:
        statistics = channel_statistics(images.sample)
        keep_json(file, asdict(statistics))
    return statistics
