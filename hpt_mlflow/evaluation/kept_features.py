"""Features kept between evaluations: of the same weights on the same images at the same size they are the same."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping

import numpy as np
import safetensors
import safetensors.numpy
from torch import Tensor, nn

from hpt_mlflow.data.cache import cache_folder, keep, limit
from hpt_mlflow.errors import HptError
from hpt_mlflow.evaluation.features import FeatureReader

DEFAULT_GIB = 4.0


def kept_features(reader: FeatureReader, backbone: nn.Module, content: np.ndarray) -> np.ndarray:
    """Features of all readable images of the reader, in the order of `reader.images.indices`.

    They are taken from the cache where it has them, and kept there else. The cache holds HPT_CACHE_GIB (default: 4),
    those that were used last.

    Args:
        backbone: on the reader's device.
        content: fingerprints of these images, int64 (N,).

    Returns:
        float32 (N, feature size).
    """
    images = reader.images
    folder = cache_folder() / "features"
    file = folder / f"{_key(reader, backbone.state_dict(), content)}.safetensors"
    try:
        features: np.ndarray = safetensors.numpy.load_file(file)["features"]
        if len(features) == len(images.indices):
            os.utime(file)
            return features
    except (OSError, KeyError, safetensors.SafetensorError):
        pass
    unreadable = len(images.unreadable)
    features = reader.features(backbone, images.indices)
    if len(images.unreadable) == unreadable:
        keep(file, lambda opened: safetensors.numpy.save_file({"features": features}, opened))
        limit(folder, _limit_gib() * 2**30)
    return features


def _limit_gib() -> float:
    text = os.environ.get("HPT_CACHE_GIB", "")
    try:
        return float(text) if text else DEFAULT_GIB
    except ValueError:
        raise HptError(f"HPT_CACHE_GIB: {text!r} is not a number") from None


def _key(reader: FeatureReader, weights: Mapping[str, Tensor], content: np.ndarray) -> str:
    digest = hashlib.sha256()
    statistics = reader.statistics
    # GPUs compute a little differently.
    digest.update(
        f"{reader.image_size} {reader.resize_to} {statistics.mean} {statistics.std} {reader.device.type}\n".encode()
    )
    for name, tensor in weights.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    digest.update(reader.images.indices.tobytes())
    digest.update(content.tobytes())
    return digest.hexdigest()[:32]
