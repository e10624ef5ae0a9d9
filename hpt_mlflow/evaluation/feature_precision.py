"""Which arithmetic frozen features are computed with: found by trying, since speed is worth nothing if they differ."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpt_mlflow.data.cache import cache_folder, keep_json, read_json
from hpt_mlflow.data.dataset import evenly_spaced
from hpt_mlflow.evaluation.feature_cache import update_with_network
from hpt_mlflow.evaluation.features import FeatureReader, FrozenNetwork
from hpt_mlflow.models.bfloat16 import has_native_bfloat16

TRIAL_IMAGES = 256
# Passes of a trial over its images, and so which share of the images it may take: it must not cost what it is to save.
REPEATS = 2
SMALLEST_TRIAL, TRIAL_SHARE = 64, 1 / 16
# Features in bfloat16 are those in float32 if no image's has turned further, and so many images keep their nearest
# neighbour. The second is the stricter one: of a network whose features are all alike, only small differences tell
# images apart, and a small angle may hide that they are gone.
MOST_COSINE_DISTANCE = 1e-3
LEAST_NEIGHBOURS_KEPT = 0.99


@dataclass(frozen=True)
class FeaturePrecision:
    """How frozen features are computed.

    Attributes:
        precision: float32 or bfloat16.
        trial: what was tried, in words; empty where nothing was.
    """

    precision: str
    trial: str = ""


def choose_feature_precision(precision: str, reader: FeatureReader, backbones: Sequence[nn.Module]) -> FeaturePrecision:
    """`precision` itself, or for `auto` bfloat16 where it is faster and its features are those of float32.

    It is chosen once for all networks that are compared with each other, so that no arithmetic makes a difference
    between them: bfloat16 has to agree with each, and to be faster over all of them. The same networks and images get
    the same answer again, which is kept.

    Args:
        precision: auto, float32 or bfloat16.
        reader: whose images are tried, a few evenly from all that can be read.
        backbones: on the reader's device; left exactly as they are.

    Raises:
        HptError: too many images cannot be read any more.
    """
    if precision != "auto":
        return FeaturePrecision(precision)
    if not has_native_bfloat16(reader.device):
        return FeaturePrecision("float32")
    file = cache_folder() / "feature_precision" / f"{_key(reader, backbones)}.json"
    kept = read_json(file, lambda values: FeaturePrecision(values["precision"], str(values["trial"])))
    if kept is not None and kept.precision in ("float32", "bfloat16"):
        return kept
    chosen = _try(reader, backbones)
    keep_json(file, asdict(chosen))
    return chosen


def _try(reader: FeatureReader, backbones: Sequence[nn.Module]) -> FeaturePrecision:
    batches = [batch for batch, _ in reader.batches(_evenly(reader.images.indices))]
    images = sum(len(batch) for batch in batches)
    if images < 2:
        return FeaturePrecision("float32")
    seconds, tried, refused = {"float32": 0.0, "bfloat16": 0.0}, 0, ""
    for backbone in backbones:
        network, features = FrozenNetwork(backbone), {}
        for precision in seconds:
            features[precision], took = _timed(network, batches, precision)
            seconds[precision] += took
        tried += images
        refused = _why_refused(features["float32"], features["bfloat16"])
        if refused:
            break
    rates = {precision: tried / took for precision, took in seconds.items()}
    text = ", ".join(f"{precision} {rate:.0f} images/s" for precision, rate in rates.items())
    faster = rates["bfloat16"] > rates["float32"]
    return FeaturePrecision("bfloat16" if faster and not refused else "float32", text + refused)


def _evenly(indices: np.ndarray) -> np.ndarray:
    return evenly_spaced(indices, min(TRIAL_IMAGES, max(SMALLEST_TRIAL, int(TRIAL_SHARE * len(indices)))))


def _timed(network: FrozenNetwork, batches: list[Tensor], precision: str) -> tuple[Tensor, float]:
    """Features of all batches, float32 (N, F) on the CPU, and the seconds of the fastest time."""
    network.features(batches[0], precision).cpu()  # The first pass of a shape chooses kernels.
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        # Copying waits for the device.
        features = torch.cat([network.features(batch, precision).cpu() for batch in batches])
        times.append(time.perf_counter() - start)
    return features, min(times)


def _why_refused(features: Tensor, found: Tensor) -> str:
    """Why `found` are not `features`, both float32 (N, F), or nothing."""
    distance = 1 - F.cosine_similarity(features.double(), found.double()).min().item()
    kept = (_nearest(features) == _nearest(found)).double().mean().item()
    # Written so that NaN is refused.
    if distance <= MOST_COSINE_DISTANCE and kept >= LEAST_NEIGHBOURS_KEPT:
        return ""
    return f"; bfloat16 differs: {1 - kept:.1%} of nearest neighbours, cosine distance up to {distance:.1g}"


def _nearest(features: Tensor) -> Tensor:
    directions = F.normalize(features.double(), dim=1)
    return (directions @ directions.T).fill_diagonal_(-2).argmax(dim=1)


def _key(reader: FeatureReader, backbones: Sequence[nn.Module]) -> str:
    digest = hashlib.sha256()
    images, device = reader.images, reader.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    facts = (
        images.dataset.digest,
        images.smallest_side,
        reader.image_size,
        reader.resize_to,
        reader.statistics,
        reader.batch_size,
        name,
        torch.get_num_threads(),
        torch.__version__,
    )
    digest.update(repr(facts).encode())
    digest.update(images.indices.tobytes())
    for backbone in backbones:
        update_with_network(digest, backbone)
    return digest.hexdigest()[:32]
