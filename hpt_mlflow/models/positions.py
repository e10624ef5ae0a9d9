"""Position embeddings of vision transformers, for images of another size."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional as F

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
        side, prefix = _layout(positions.shape[1])
        wanted = architecture.image_size // patch
        if side not in (0, wanted):
            # 1 x width x side x side
            grid = positions[:, prefix:].float().unflatten(1, (side, side)).permute(0, 3, 1, 2)
            antialias = "reg_token" in state
            resized = F.interpolate(grid, size=(wanted, wanted), mode="bicubic", antialias=antialias)
            patches = resized.flatten(2).transpose(1, 2).to(positions.dtype)  # 1 x wanted^2 x width
            fitted[name] = positions.new_empty(1, prefix + wanted**2, positions.shape[2])
            fitted[name][:, :prefix], fitted[name][:, prefix:] = positions[:, :prefix], patches
    return fitted


def _layout(tokens: int) -> tuple[int, int]:
    """The side of the square of patches, and the number of tokens before it."""
    side = math.isqrt(tokens)
    return side, tokens - side**2
