"""Low-rank changes of layers (LoRA: Hu et al., ICLR 2022, equation 3): W x + B A x, where only A and B learn.

A layer keeps its own parameters under their own names, and gets two more. `merged_state` adds them to its weights, so
that a model that is kept needs neither.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

DOWN, UP = "lora_down", "lora_up"
Layer = nn.Linear | nn.Conv2d


def add_low_rank(layers: Iterable[Layer], rank: int, seed: int) -> None:
    """Give layers a change of at most this rank, which is 0 at first; in place.

    Args:
        seed: of A, which starts as a linear layer's weights do; B starts at 0.
    """
    generator = torch.Generator().manual_seed(seed)
    for layer in layers:
        outputs, inputs, *kernel = layer.weight.shape
        down, up = torch.empty(rank, inputs, *kernel), torch.zeros(outputs, rank)
        nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=generator)
        layer.register_parameter(DOWN, nn.Parameter(down.to(layer.weight)))
        layer.register_parameter(UP, nn.Parameter(up.to(layer.weight)))
        layer.register_forward_hook(_add_change)


def _add_change(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    down, up = layer.get_parameter(DOWN), layer.get_parameter(UP)
    if isinstance(layer, nn.Conv2d):
        reduced = F.conv2d(inputs[0], down, None, layer.stride, layer.padding, layer.dilation)
        return output + F.conv2d(reduced, up[:, :, None, None])
    return output + F.linear(F.linear(inputs[0], down), up)


def merged_state(network: nn.Module) -> dict[str, Tensor]:
    """The state of a network with the changes in its weights: W + B A."""
    state = {name: tensor.detach() for name, tensor in network.state_dict().items()}
    for name in [name for name in state if name.endswith(f".{DOWN}") or name == DOWN]:
        place = name.removesuffix(DOWN)
        down, up, weight = state.pop(name), state.pop(place + UP), state[f"{place}weight"]
        state[f"{place}weight"] = weight + (up @ down.flatten(1)).view_as(weight)
    return state
