"""The map of features of a convolutional network, before it is averaged over the image."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from hpt_mlflow.errors import HptError


@contextmanager
def feature_maps(backbone: nn.Module, arch: str) -> Iterator[Callable[[], Tensor]]:
    """A function that gives the map of the last images that went through a backbone: (N, channels, height, width).

    Args:
        arch: its name, for errors.

    Raises:
        HptError: it averages no map, as transformers do not.
    """
    pools = [layer for layer in backbone.modules() if _is_pool(layer)]
    if not pools:
        raise HptError(f"{arch} has no map of features that it averages", "leave it out", setting="patches")
    newest: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        newest[:] = [inputs[0]]

    handle = pools[-1].register_forward_pre_hook(keep)
    try:
        yield lambda: newest[0]
    finally:
        handle.remove()


def _is_pool(layer: nn.Module) -> bool:
    """Whether a layer averages over the image: that of torchvision, or timm's around it."""
    whole = isinstance(layer, nn.AdaptiveAvgPool2d) and layer.output_size in (1, (1, 1))
    return whole or type(layer).__name__ == "SelectAdaptivePool2d"
