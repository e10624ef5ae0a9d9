"""Networks for images of other channels than red, green and blue."""

from __future__ import annotations

import math

import torch
from torch import nn

from hpt_mlflow.errors import HptError

COLOURS = 3


def widen(network: nn.Module, channels: int, name: str) -> None:
    """Let a network for RGB take other channels, in place, with what its first convolution has learned.

    The rule is timm's (`timm.models.adapt_input_conv`): for one channel, weights are summed over the colours; for more,
    the colours are repeated in turn, scaled by 3 / channels, so that equal channels give the same sum as equal colours.

    Args:
        name: of the network, in errors.

    Raises:
        HptError: its first convolution does not take RGB.
    """
    layer = _first_convolution(network, name)
    weight = layer.weight.detach()
    if channels == 1:
        wide = weight.sum(dim=1, keepdim=True)
    else:
        turns = math.ceil(channels / COLOURS)
        wide = weight.repeat(1, turns, 1, 1)[:, :channels] * (COLOURS / channels)
    _replace(layer, wide, channels)


def renew(network: nn.Module, channels: int, name: str) -> None:
    """Let a network with random weights take other channels, in place; the new weights are random, too.

    Each has the standard deviation of the old ones, for as many inputs: channels that start equal would stay similar.

    Raises:
        HptError: its first convolution does not take RGB.
    """
    layer = _first_convolution(network, name)
    weight = layer.weight.detach()
    outputs, _, height, width = weight.shape
    deviation = weight.std() * math.sqrt(COLOURS / channels)
    _replace(layer, torch.randn(outputs, channels, height, width) * deviation, channels)


def _first_convolution(network: nn.Module, name: str) -> nn.Conv2d:
    layer = next((layer for layer in network.modules() if isinstance(layer, nn.Conv2d)), None)
    if layer is None or layer.in_channels != COLOURS or layer.groups != 1:
        raise HptError(
            f"{name} does not begin with a convolution of red, green and blue, and cannot take other channels",
            "choose three bands with ?bands=4,3,2 after the address of the data, or another network",
            setting="arch",
        )
    return layer


def _replace(layer: nn.Conv2d, weight: torch.Tensor, channels: int) -> None:
    layer.weight = nn.Parameter(weight.to(layer.weight.dtype).contiguous())
    layer.in_channels = channels
