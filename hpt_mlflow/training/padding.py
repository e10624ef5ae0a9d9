"""Convolution weights that see only padding, such as the outer ones of a 3x3 kernel on a map of one pixel.

Their gradient is 0. In bfloat16, oneDNN leaves uninitialised memory in its place, sometimes NaN (seen with torch
2.14.1 on an AMD EPYC with AVX512_BF16, resnet18 at 16 pixels). Such a weight is harmless until an
image is larger.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


def keep_unseen_weights(network: nn.Module, example: Tensor) -> None:
    """Give weights that see only padding a gradient of 0, whatever the kernels compute.

    Args:
        network: unchanged but for hooks on such weights.
        example: images of the size that is trained on, (N, 3, H, W).
    """
    for layer, height, width in _inputs_of_convolutions(network, example):
        seen = _seen(layer, height, 0)[:, None] & _seen(layer, width, 1)  # kernel height x width
        if layer.weight.requires_grad and not seen.all():
            layer.weight.register_hook(partial(_only_where, seen.to(layer.weight.device)))


def _only_where(seen: Tensor, gradient: Tensor) -> Tensor:
    return gradient.masked_fill(~seen, 0)


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
def _inputs_of_convolutions(network: nn.Module, example: Tensor) -> Iterator[tuple[nn.Conv2d, int, int]]:
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
        network.eval()(example)
    finally:
        for handle in handles:
            handle.remove()
        for layer, mode in modes:
            layer.training = mode
    yield from inputs_seen
