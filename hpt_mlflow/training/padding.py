"""Convolution weights that see only padding, such as the outer ones of a 3x3 kernel on a map of one pixel.

Their gradient is 0. In bfloat16, oneDNN leaves uninitialised memory in its place, sometimes NaN (seen with torch
2.14.1 on an AMD EPYC with AVX512_BF16, resnet18 at 16 pixels). Such a weight is harmless until an
image is larger.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hpt_mlflow.models.positions import call_at_size


def keep_unseen_weights(network: nn.Module, *examples: Tensor) -> None:
    """Give weights that see only padding a gradient of 0, whatever the kernels compute.

    Args:
        network: unchanged but for hooks on such weights, or on their layers.
        examples: images of each size that is trained on, (N, channels, H, W); the size of the network first.
    """
    found: dict[nn.Conv2d, dict[tuple[int, int], Tensor]] = {}
    for example in examples:
        for layer, height, width in _inputs_of_convolutions(network, example, examples[0].shape[-1]):
            seen = _seen(layer, height, 0)[:, None] & _seen(layer, width, 1)  # kernel height x width
            found.setdefault(layer, {})[height, width] = seen.to(layer.weight.device)
    for layer, by_size in found.items():
        first, *others = by_size.values()
        if not layer.weight.requires_grad or all(seen.all() for seen in by_size.values()):
            continue
        if all(torch.equal(seen, first) for seen in others):
            layer.weight.register_hook(partial(_only_where, first))
        else:
            layer.register_forward_pre_hook(partial(_hide_unseen, by_size))
            layer.register_forward_hook(_show_all, always_call=True)


def _only_where(seen: Tensor, gradient: Tensor) -> Tensor:
    return gradient.masked_fill(~seen, 0)


def _hide_unseen(by_size: Mapping[tuple[int, int], Tensor], layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """For one call, put 0 in place of the weights that it does not see: gradients of several calls are added up."""
    seen = by_size.get((inputs[0].shape[-2], inputs[0].shape[-1]))
    if seen is not None:
        weight = layer.get_parameter("weight")
        vars(layer)["whole_weight"] = weight
        vars(layer)["_parameters"]["weight"] = torch.where(seen, weight, 0)


def _show_all(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    if (weight := vars(layer).pop("whole_weight", None)) is not None:
        vars(layer)["_parameters"]["weight"] = weight


def _seen(layer: nn.Conv2d, length: int, axis: int) -> Tensor:
    """Which positions of a kernel's axis meet a pixel of an input axis of this length; bool (kernel,)."""
    kernel, stride, dilation = layer.kernel_size[axis], layer.stride[axis], layer.dilation[axis]
    if type(layer).__name__ == "Conv2dSame":
        # Of timm: it pads its input so that there is one output per stride, TensorFlow's "same".
        outputs = -(-length // stride)
        padding = max(0, (outputs - 1) * stride + dilation * (kernel - 1) + 1 - length) // 2
    else:
        padding = layer.padding[axis] if isinstance(layer.padding, tuple) else dilation * (kernel - 1) // 2
        outputs = (length + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    pixel = torch.arange(outputs)[:, None] * stride + torch.arange(kernel) * dilation - padding
    return ((pixel >= 0) & (pixel < length)).any(dim=0)


@torch.no_grad()
def _inputs_of_convolutions(network: nn.Module, example: Tensor, usual: int) -> Iterator[tuple[nn.Conv2d, int, int]]:
    """Each convolution, and the height and width of its input."""
    inputs_seen: list[tuple[nn.Conv2d, int, int]] = []

    def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, nn.Conv2d)
        inputs_seen.append((layer, inputs[0].shape[-2], inputs[0].shape[-1]))

    handles: list[RemovableHandle] = [
        layer.register_forward_pre_hook(note) for layer in network.modules() if isinstance(layer, nn.Conv2d)
    ]
    modes = [(layer, layer.training) for layer in network.modules()]
    try:
        call_at_size(network.eval(), example, usual)
    finally:
        for handle in handles:
            handle.remove()
        for layer, mode in modes:
            layer.training = mode
    yield from inputs_seen
