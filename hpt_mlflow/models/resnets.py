"""Recognising the ResNet of a state by its block type, numbers of blocks and widths."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from torch import Tensor

# Blocks in each of the four layers, output channels of the first convolution of a block, and input channels of a group
# of its second one.
Kind = tuple[tuple[int, ...], int, int]
BASIC: dict[Kind, str] = {
    ((2, 2, 2, 2), 64, 64): "resnet18",
    ((3, 4, 6, 3), 64, 64): "resnet34",
}
BOTTLENECK: dict[Kind, str] = {
    ((3, 4, 6, 3), 64, 64): "resnet50",
    ((3, 4, 23, 3), 64, 64): "resnet101",
    ((3, 8, 36, 3), 64, 64): "resnet152",
    ((3, 4, 6, 3), 128, 4): "resnext50_32x4d",
    ((3, 4, 23, 3), 256, 8): "resnext101_32x8d",
    ((3, 4, 23, 3), 256, 4): "resnext101_64x4d",
    ((3, 4, 6, 3), 128, 128): "wide_resnet50_2",
    ((3, 4, 23, 3), 128, 128): "wide_resnet101_2",
}
RESNETS: Collection[str] = frozenset([*BASIC.values(), *BOTTLENECK.values()])
SMALL_STEM_KERNEL = 3


def recognise_resnet(state: Mapping[str, Tensor]) -> str | None:
    """The name that torchvision gives to the ResNet of a state with torchvision's names, or None."""
    try:
        kind = (_blocks(state), len(state["layer1.0.conv1.weight"]), state["layer1.0.conv2.weight"].shape[1])
    except (KeyError, IndexError, TypeError):
        return None
    return (BOTTLENECK if "layer1.0.conv3.weight" in state else BASIC).get(kind)


def has_small_stem(state: Mapping[str, Tensor]) -> bool:
    """Whether a ResNet begins with a 3 x 3 convolution, made for images of about 32 pixels."""
    return "conv1.weight" in state and tuple(state["conv1.weight"].shape[2:]) == (SMALL_STEM_KERNEL, SMALL_STEM_KERNEL)


def _blocks(state: Mapping[str, Tensor]) -> tuple[int, ...]:
    blocks = {match.groups() for name in state if (match := re.match(r"layer([1-4])\.(\d+)\.conv1\.weight$", name))}
    return tuple(sum(layer == number for layer, _ in blocks) for number in "1234")
