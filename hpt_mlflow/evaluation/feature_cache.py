"""Features cached between evaluations, by the weights, the images and their size."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress

import numpy as np
import safetensors
import safetensors.numpy
from torch import nn

from hpt_mlflow.data.cache import cache_folder, keep, limit
from hpt_mlflow.data.decode import conversion
from hpt_mlflow.errors import HptError
from hpt_mlflow.evaluation.features import FeatureReader

DEFAULT_GIB = 4.0


def cached_features(reader: FeatureReader, backbone: nn.Module, content: np.ndarray) -> np.ndarray:
    """Features of all readable images of the reader, in the order of `reader.images.indices`.

    They are read from the cache, or computed and written to it. It holds HPT_CACHE_GIB (default: 4), the most recently
    used ones.

    Args:
        backbone: on the reader's device.
        content: contents of these images, int64 (N,) (see `data.contents`).

    Returns:
        float32 (N, feature size).
    """
    images = reader.images
    folder, most_bytes = cache_folder() / "features", _limit_gib() * 2**30
    file = folder / f"{_key(reader, backbone, content)}.safetensors"
    with suppress(OSError, KeyError, safetensors.SafetensorError):
        features: np.ndarray = safetensors.numpy.load_file(file)["features"]
        if len(features) == len(images.indices):
            os.utime(file)
            return features
    unreadable = len(images.unreadable)
    features = reader.features(backbone, images.indices)
    if len(images.unreadable) == unreadable and features.nbytes <= most_bytes:
        keep(file, lambda opened: safetensors.numpy.save_file({"features": features}, opened))
        limit(folder, most_bytes)
    return features


def _limit_gib() -> float:
    text = os.environ.get("HPT_CACHE_GIB", "")
    with suppress(ValueError):
        size = float(text) if text else DEFAULT_GIB
        if size >= 0:
            return size
    raise HptError(f"{text!r} is not a number of 0 or more", "write for example 4 or 0.5", setting="HPT_CACHE_GIB")


def _key(reader: FeatureReader, backbone: nn.Module, content: np.ndarray) -> str:
    digest = hashlib.sha256()
    images, statistics = reader.images, reader.statistics
    sizes = f"{conversion()} {images.pixels!r} {images.smallest_side} {reader.image_size} {reader.resize_to}"
    # GPUs compute slightly different values, and bfloat16 even more so.
    arithmetic = f"{reader.device.type} {reader.precision}"
    digest.update(f"{sizes} {statistics.mean} {statistics.std} {arithmetic}\n".encode())
    # The layers too, since some have no weights.
    digest.update(f"{backbone}\n".encode())
    for name, tensor in backbone.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    digest.update(images.indices.tobytes())
    digest.update(content.tobytes())
    return digest.hexdigest()[:32]
