"""Networks of timm as backbones, and what a vision transformer gives as features."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Sequence
from types import MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from hpt_mlflow.errors import HptError
from hpt_mlflow.models.architecture import Architecture

# The prefix of the name of a network of timm.
TIMM = "timm:"
# Networks that timm builds but has no name for: one that it has, and its arguments. The ViT-S of MoCo-v3 has 12 heads
# (Chen et al., ICCV 2021, table 1), which the shapes of its weights do not show.
VARIANTS = {"vit_small_patch16_224_mocov3": ("vit_small_patch16_224", {"num_heads": 12})}


def import_timm() -> ModuleType:
    """The package timm, which takes a second to import."""
    return importlib.import_module("timm")


def timm_networks() -> list[str]:
    """Names of the networks of timm, and of their variants."""
    return [*import_timm().list_models(), *VARIANTS]


def check_timm_name(arch: str) -> None:
    """Raise HptError unless timm has such a network."""
    name, known = arch.removeprefix(TIMM), timm_networks()
    if name in known:
        return
    if name.partition(".")[0] in known:
        raise HptError(
            f"{arch!r} names weights of timm",
            f"give only the network, {TIMM}{name.partition('.')[0]}, and a file of weights with --weights",
            setting="arch",
        )
    close = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(TIMM + match for match in close)}?" if close else f"try {TIMM}resnet18"
    raise HptError(f"timm has no network {name!r}", hint, setting="arch")


def build_timm(architecture: Architecture) -> nn.Module:
    """A network of timm without its classifier, whose features are pooled."""
    timm = import_timm()
    name, more = VARIANTS.get(architecture.name.removeprefix(TIMM), (architecture.name.removeprefix(TIMM), {}))
    config = timm.get_pretrained_cfg(name)
    # Networks with position embeddings take only one size.
    size = {"img_size": architecture.image_size} if config and config.fixed_input_size else {}
    arguments = {"pretrained": False, "num_classes": 0, **size, **more}
    if not architecture.features:
        return _keeping_rotations(timm.create_model(name, **arguments))
    try:
        network = _keeping_rotations(timm.create_model(name, global_pool="", **arguments))
        prefix: Any = network.num_prefix_tokens
    # No such argument, or no tokens.
    except (TypeError, AttributeError) as error:
        problem = f"{architecture.name} is not a vision transformer, its features are always the same"
        raise HptError(problem, "leave it out", setting="features") from error
    if "cls" in architecture.features and getattr(network, "cls_token", None) is None:
        raise HptError(f"{architecture.name} has no class token", "use mean", setting="features")
    network.head = TokenFeatures(architecture.features, prefix)
    return network


def _keeping_rotations(network: nn.Module) -> nn.Module:
    """Let rotary positions of DINOv3 be computed once for each size of images.

    timm computes them on the processor in every forward pass. A CUDA graph cannot hold that, and without one the GPU
    would wait for it.
    """
    rotary: Any
    for rotary in network.modules():
        if hasattr(rotary, "_create_embed") and hasattr(rotary, "aug_active"):
            rotary._create_embed = MethodType(_create_embed, rotary)
    return network


def _create_embed(module: Any, feat_shape: Sequence[int], no_aug: bool = False) -> Tensor:
    """In place of timm's method, which it calls. It has the same name, by which bound methods are pickled."""
    create = type(module)._create_embed
    if module.training and module.aug_active and not no_aug:
        drawn: Tensor = create(module, feat_shape, no_aug)
        return drawn
    kept: dict[tuple[Any, ...], Tensor] = vars(module).setdefault("kept_rotations", {})
    key = (*map(int, feat_shape), module.periods.device, module.periods.dtype)
    if key not in kept:
        # A training may use what is first computed for features, in inference mode.
        with torch.inference_mode(False), torch.no_grad():
            kept[key] = create(module, feat_shape, no_aug)
    return kept[key]


def timm_classifier(arch: str) -> tuple[str, ...]:
    """Names of the layers that a network of timm has on top of its backbone."""
    name = arch.removeprefix(TIMM)
    config = import_timm().get_pretrained_cfg(VARIANTS.get(name, (name,))[0])
    names = config.classifier if config else None
    return (names,) if isinstance(names, str) else tuple(names or ())


class TokenFeatures(nn.Module):
    """Features from the normalised tokens of the last block: no parameters."""

    def __init__(self, features: str, prefix: int) -> None:
        """
        Args:
            features: `cls`: the class token; `mean`: the mean of the patches; `cls+mean`: both, one after the other, as
                in the linear probe of DINOv2 (Oquab et al., TMLR 2024, section 7.1).
            prefix: number of tokens before those of the patches: the class token and registers.
        """
        super().__init__()
        self.features = features
        self.prefix = prefix

    @override
    def forward(self, tokens: Tensor) -> Tensor:
        """From (N, tokens, width) to (N, width), or (N, 2 width) for both."""
        parts = {"cls": lambda: tokens[:, 0], "mean": lambda: tokens[:, self.prefix :].mean(dim=1)}
        return torch.cat([parts[name]() for name in self.features.split("+")], dim=1)
