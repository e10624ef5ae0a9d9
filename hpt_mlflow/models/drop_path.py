"""Stochastic depth (Huang et al., ECCV 2016, arXiv 1603.09382): while it trains, a network leaves out random blocks."""

from __future__ import annotations

from torch import nn
from torchvision.ops import StochasticDepth

from hpt_mlflow.errors import HptError
from hpt_mlflow.models.architecture import Architecture

# How timm calls the places of its blocks where a branch may be left out.
_PLACE = "drop_path"


def set_drop_path(backbone: nn.Module, rate: float) -> None:
    """Leave out the branches of a block, image by image, with a probability that rises from 0 to `rate` at the last.

    This has no weights, and no effect outside of training mode.
    """
    blocks = _blocks(backbone)
    for number, block in enumerate(blocks):
        for name in _places(block):
            layer = StochasticDepth(rate * number / max(1, len(blocks) - 1), "row")
            setattr(block, name, layer.train(block.training))


def check_drop_path(backbone: nn.Module, architecture: Architecture) -> None:
    """Raise HptError if the network has no branches that may be left out."""
    if not _blocks(backbone):
        problem = f"{architecture.name} has no blocks of which a branch may be left out"
        raise HptError(problem, "leave it out, or use a vision transformer, ConvNeXt or EfficientNet", setting=_PLACE)


def _blocks(backbone: nn.Module) -> list[nn.Module]:
    """Modules with branches that may be left out, from the images on."""
    return [module for module in backbone.modules() if _places(module)]


def _places(module: nn.Module) -> list[str]:
    """Names of the children of a block, in networks of timm and torchvision, that may leave out a branch."""
    return [
        name for name, child in module.named_children() if name.startswith(_PLACE) or isinstance(child, StochasticDepth)
    ]
