"""Low-rank changes of layers (LoRA: Hu et al., ICLR 2022, equation 3): W x + B A x, where only A and B learn.

A layer keeps its own parameters under their own names, and gets two more. `merged` adds their product to its weights,
so that a model that is used needs neither.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

DOWN, UP = "lora_down", "lora_up"
Layer = nn.Linear | nn.Conv2d
# Rows of a product that are computed at once, so that they stay in a cache of the processor.
ROWS = 64


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


def factors_of(state: Mapping[str, Tensor], weight: str) -> dict[str, Tensor]:
    """The matrices A and B of a change of a weight, by their names in a state; none if it has no change."""
    place = weight.removesuffix("weight")
    return {place + name: state[place + name] for name in (DOWN, UP) if weight != place and place + name in state}


def merged(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state with the changes in its weights, W + B A, and without A and B.

    Of float32 it is the same bits on any processor: products are exact in float64, where they are added up in the order
    of the ranks, and the result is rounded once.
    """
    changed = {name: tensor.detach() for name, tensor in state.items()}
    for name in [name for name in changed if name.rpartition(".")[2] == DOWN]:
        place = name.removesuffix(DOWN)
        down, up, weight = changed.pop(name), changed.pop(place + UP), changed[f"{place}weight"]
        changed[f"{place}weight"] = (weight.double() + _product(up, down).view_as(weight)).to(weight)
    return changed


def _product(up: Tensor, down: Tensor) -> Tensor:
    """B A of B (outputs, rank) and A (rank, inputs, ...), float64 (outputs, inputs * ...)."""
    columns, rows = up.double(), down.flatten(1).double()
    product = rows.new_zeros(len(columns), rows.shape[1])
    for part, column in zip(product.split(ROWS), columns.split(ROWS), strict=True):
        for rank, row in enumerate(rows):
            part.addcmul_(column[:, rank, None], row)
    return product
