"""Which parameters of a backbone learn in a stage, and which stay as they are."""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch
from torch import nn

from hpt_mlflow.errors import HptError
from hpt_mlflow.models.architecture import Architecture
from hpt_mlflow.models.backbone import BatchNorm, batch_norms
from hpt_mlflow.models.lora import Layer, add_low_rank
from hpt_mlflow.models.update import ATTENTION, LOW_RANK, Update

# Parts of a parameter's name that lead to a block: `blocks.3`, `layer4.1`, `encoder.layers.encoder_layer_3`.
_NUMBERED = re.compile(r"(?:[a-z_]*(?:layer|block|stage)_?|[sb])?\d+")
_CONTAINER = re.compile(r"blocks?|layers?|stages?|features|encoder|trunk|trunk_output|model|net|body")


def let_learn(backbone: nn.Module, update: Update, seed: int = 0) -> None:
    """Let those parameters of a backbone learn that an update allows; the others need no gradient.

    Running statistics are buffers, updated by any forward pass in training mode.

    Args:
        seed: of low-rank changes.

    Raises:
        HptError: the network has nothing of that kind.
    """
    layers = low_rank_layers(backbone, update) if update.kind in LOW_RANK else []
    backbone.requires_grad_(update.kind == "all")
    for parameter in _chosen(backbone, update):
        parameter.requires_grad_(True)
    add_low_rank(layers, update.rank, seed)


def check_update(backbone: nn.Module, update: Update, architecture: Architecture) -> None:
    """Raise HptError if a network has nothing that an update could change, before any long work."""
    if update.kind in ("bn", "bn-stats") and not batch_norms(backbone):
        remedy = "use norm" if any(True for _ in _normalisations(backbone)) else "use all"
        raise HptError(f"{architecture.name} has no BatchNorm layers", remedy, setting="update")
    if update.kind == "norm" and not any(True for _ in _normalisations(backbone)):
        raise HptError(f"{architecture.name} has no normalisation layers", "use all", setting="update")
    if update.blocks > len(blocks := block_names(backbone)):
        problem = f"{architecture.name} has {len(blocks)} blocks, not {update.blocks}"
        raise HptError(problem, f"use a number up to {len(blocks)}" if blocks else "use all", setting="update")
    if update.kind in LOW_RANK:
        layers = low_rank_layers(backbone, update)
        names = {name for name, layer in backbone.named_modules() if any(layer is chosen for chosen in layers)}
        idle = [target for target in update.targets if not any(_matches(name, (target,)) for name in names)]
        if idle or not layers:
            raise HptError(
                f"{','.join(idle) or 'attention'} matches no linear layer and no convolution of "
                f"{architecture.name} that may get a low-rank change",
                f"name ends of layers, such as {', '.join(_ends(backbone)[:4]) or 'none here'}",
                setting="lora_targets",
            )
        _refuse_uncalled(backbone, layers, architecture)


def learning_share(backbone: nn.Module) -> float:
    """Parameters that learn, as a share of all that the backbone has without low-rank changes."""
    own = sum(parameter.numel() for name, parameter in backbone.named_parameters() if ".lora_" not in f".{name}")
    return sum(parameter.numel() for parameter in backbone.parameters() if parameter.requires_grad) / own


def block_names(backbone: nn.Module) -> list[str]:
    """Names of the blocks that a network is made of, from the images on."""
    names = list(dict.fromkeys(block for name, _ in backbone.named_parameters() if (block := _block_of(name))))
    # Where stages hold blocks, a stage's own layers are no block.
    return [name for name in names if not any(other.startswith(f"{name}.") for other in names)]


def depths(backbone: nn.Module) -> dict[str, int]:
    """By the name of each parameter, how far it is from the features: 0 behind the last block, 1 in it, and so on.

    What lies before the first block is deepest, and what lies between two blocks is as deep as the later one, as
    layers are counted by BEiT (Bao et al., ICLR 2022, arXiv 2106.08254, appendix H, and reference code).
    """
    numbers = {block: number for number, block in enumerate(block_names(backbone), start=1)}
    begun, found = 0, {}
    for name, _ in backbone.named_parameters():
        number = numbers.get(_block_of(name))
        begun = number or begun
        is_between = number is None and 0 < begun < len(numbers)
        is_behind = number is None and begun == len(numbers)
        found[name] = 0 if is_behind else 1 + len(numbers) - begun - is_between
    return found


def low_rank_layers(backbone: nn.Module, update: Update) -> list[Layer]:
    """The layers that get low-rank changes: those that match the targets, outside of blocks that learn in full."""
    # A layer that adds its bias apart is called, as changes of it need.
    for module in backbone.modules():
        if hasattr(module, "qkv_bias_separate"):
            vars(module)["qkv_bias_separate"] = True
    full = {id(parameter) for parameter in _last(backbone, update.blocks)}
    fitting = {
        name: layer
        for name, layer in backbone.named_modules()
        if isinstance(layer, Layer) and _is_plain(layer) and id(layer.weight) not in full
    }
    targets = update.targets
    if not targets:
        targets = ATTENTION if any(_matches(name, ATTENTION) for name in fitting) else ("",)
    return [layer for name, layer in fitting.items() if _matches(name, targets)]


def _chosen(backbone: nn.Module, update: Update) -> Iterator[nn.Parameter]:
    """Parameters of the backbone itself that learn, if not all do."""
    if update.kind == "bn":
        for layer in batch_norms(backbone):
            yield from layer.parameters()
    if update.kind in ("norm", "explora"):
        yield from _normalisations(backbone)
    yield from _last(backbone, update.blocks)


def _normalisations(backbone: nn.Module) -> Iterator[nn.Parameter]:
    """Affine parameters of all normalisation layers, of torch, torchvision, timm and others."""
    for layer in backbone.modules():
        if isinstance(layer, BatchNorm) or "norm" in type(layer).__name__.lower():
            yield from layer.parameters(recurse=False)


def _last(backbone: nn.Module, blocks: int) -> Iterator[nn.Parameter]:
    """Parameters of the last blocks, and of what follows them."""
    if blocks:
        first = block_names(backbone)[-blocks]
        begun = False
        for name, parameter in backbone.named_parameters():
            begun = begun or _block_of(name) == first
            if begun:
                yield parameter


def _block_of(parameter: str) -> str:
    """The name of the block that a parameter is in; empty outside of blocks."""
    parts, end = parameter.split(".")[:-1], 0
    for number, part in enumerate(parts, start=1):
        if _NUMBERED.fullmatch(part):
            end = number
        elif not _CONTAINER.fullmatch(part):
            break
    return ".".join(parts[:end])


def _is_plain(layer: Layer) -> bool:
    """Whether a layer computes nothing but its own product; kernels of 1 x 1 alone, and not in groups."""
    if isinstance(layer, nn.Conv2d):
        return type(layer) is nn.Conv2d and layer.groups == 1 and layer.kernel_size == (1, 1)
    return type(layer) is nn.Linear


def _matches(name: str, targets: tuple[str, ...]) -> bool:
    """Whether a name ends in a target, at a dot; an empty target fits all."""
    return any(not target or f".{name}".endswith(f".{target}") for target in targets)


def _ends(backbone: nn.Module) -> list[str]:
    """The last two parts of the names of layers that may be targets."""
    fitting = [name for name, layer in backbone.named_modules() if isinstance(layer, Layer) and _is_plain(layer)]
    return list(dict.fromkeys(".".join(name.split(".")[-2:]) for name in fitting))


@torch.no_grad()
def _refuse_uncalled(backbone: nn.Module, layers: list[Layer], architecture: Architecture) -> None:
    """Raise HptError if a network uses the weights of a layer without calling it: changes would have no effect."""
    called: set[int] = set()
    handles = [layer.register_forward_pre_hook(lambda layer, _: called.add(id(layer))) for layer in layers]
    modes = {module: module.training for module in backbone.modules()}
    side = architecture.image_size
    try:
        backbone.eval()(torch.zeros(1, architecture.channels, side, side))
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes.items():
            module.training = training
    names = {id(layer): name for name, layer in backbone.named_modules()}
    unused = [names[id(layer)] for layer in layers if id(layer) not in called]
    if unused:
        problem = f"{architecture.name} does not call {unused[0]} as a layer, so a change of it would do nothing"
        raise HptError(problem, "name other layers", setting="lora_targets")
