"""Images of another size than a network was built for: position embeddings of vision transformers, and small views."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torchvision.models import VisionTransformer

from hpt_mlflow.augment.multicrop import LOCAL_SHARE
from hpt_mlflow.models.architecture import Architecture, patch_size

# Their names in timm and in torchvision; (1, tokens, width), those of a square of patches last.
NAMES = ("pos_embed", "encoder.pos_embedding")


def interpolate_positions(state: Mapping[str, Tensor], architecture: Architecture) -> dict[str, Tensor]:
    """The position embeddings of a state for the image size of an architecture.

    Bicubic, and with antialiasing where there are registers: as DINOv2 does for its networks without registers and with
    them (`interpolate_antialias` in its `hub/backbones.py`).

    Returns:
        By name; empty if the state has none, or if they are for this size already.
    """
    patch = patch_size(architecture.name)
    fitted = {}
    for name in NAMES:
        positions = state.get(name)
        if patch is None or positions is None or positions.ndim != 3:
            continue
        side, _ = _layout(positions.shape[1])
        wanted = architecture.image_size // patch
        if side not in (0, wanted):
            fitted[name] = _resized(positions, wanted, antialias="reg_token" in state)
    return fitted


def local_side(architecture: Architecture) -> int:
    """Side in pixels of small views (`augment.multicrop`) for a network; a transformer's patches divide it."""
    patch = patch_size(architecture.name) or 1
    return max(1, round(LOCAL_SHARE * architecture.image_size / patch)) * patch


def call_at_size(network: nn.Module, images: Tensor, usual: int) -> Tensor:
    """What a network gives for images of another size than it was built for, with gradients for all that learns.

    The position embeddings of a transformer are interpolated as `interpolate_positions` does. Networks of convolutions
    take images of any size as they are.

    Args:
        network: a backbone, or a `Sequential` that begins with one; afterwards it is as it was.
        images: float32 (N, channels, size, size); the patches of a transformer divide the size.
        usual: the size that the network was built for, in pixels.

    Raises:
        RuntimeError, ValueError, AssertionError: the network takes images of one size only.
    """
    size = images.shape[-1]
    if size == usual:
        usual_result: Tensor = network(images)
        return usual_result
    state = dict(network.named_parameters())
    antialias = any(name.endswith("reg_token") for name in state)
    fitted = {}
    for name, positions in state.items():
        if f".{name}".endswith(tuple(f".{ending}" for ending in NAMES)) and positions.ndim == 3:
            wanted = _layout(positions.shape[1])[0] * size // usual
            fitted[name] = _resized(positions, wanted, antialias)
    with _taking(network, size):
        result: Tensor = functional_call(network, fitted, (images,))
        return result


def _layout(tokens: int) -> tuple[int, int]:
    """The side of the square of patches, and the number of tokens before it."""
    side = math.isqrt(tokens)
    return side, tokens - side**2


def _resized(positions: Tensor, wanted: int, antialias: bool) -> Tensor:
    """Position embeddings (1, tokens, width) for a square of `wanted` patches a side."""
    side, prefix = _layout(positions.shape[1])
    # 1 x width x side x side
    grid = positions[:, prefix:].float().unflatten(1, (side, side)).permute(0, 3, 1, 2)
    resized = F.interpolate(grid, size=(wanted, wanted), mode="bicubic", antialias=antialias)
    patches = resized.flatten(2).transpose(1, 2).to(positions.dtype)  # 1 x wanted^2 x width
    fitted = positions.new_empty(1, prefix + wanted**2, positions.shape[2])
    fitted[:, :prefix], fitted[:, prefix:] = positions[:, :prefix], patches
    return fitted


@contextmanager
def _taking(network: nn.Module, size: int) -> Iterator[None]:
    """Let the transformers of timm and torchvision take images of this size in the block; they compare it otherwise."""
    wanted: list[tuple[nn.Module, str, Any]] = []
    for module in network.modules():
        if isinstance(module, VisionTransformer):
            wanted.append((module, "image_size", size))
        elif hasattr(module, "strict_img_size"):
            wanted.append((module, "strict_img_size", False))
    before = [(module, name, getattr(module, name)) for module, name, _ in wanted]
    try:
        for module, name, value in wanted:
            setattr(module, name, value)
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)
