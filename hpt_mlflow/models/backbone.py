"""Backbones: the classification networks of torchvision and timm without their classifier."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from hpt_mlflow.errors import HptError, one_line
from hpt_mlflow.models.architecture import MODULE, Architecture, patch_size
from hpt_mlflow.models.channels import COLOURS, renew
from hpt_mlflow.models.positions import interpolate_positions
from hpt_mlflow.models.randomness import seeded
from hpt_mlflow.models.timm_networks import TIMM, build_timm, check_timm_name, timm_classifier

# torchvision's default number of classes, by which the classifier is recognised.
IMAGENET_CLASSES = 1000
BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm
# Networks of users, by name: from the image size to the network.
ARCHITECTURES: dict[str, Callable[[int], nn.Module]] = {}


def architectures() -> list[str]:
    """Names of torchvision's classification networks."""
    return torchvision.models.list_models(module=torchvision.models)


def register_architecture(name: str, build: Callable[[int], nn.Module]) -> None:
    """Let `arch=NAME` build a network of your own, in this process.

    Models that are made of it are loaded only by a process that has registered it too; a plugin does so everywhere (see
    `hpt_mlflow.plugins`).

    Args:
        name: as in `arch`.
        build: from the image size in pixels to the network without a classifier, float32 (N, channels, size, size) to
            (N, features). It is called with seeded random generators.
    """
    ARCHITECTURES[name] = build


def check_architecture(architecture: Architecture) -> None:
    """Raise HptError unless there is such a classification network, and its variant and image size fit it."""
    arch = architecture.name
    if arch in ARCHITECTURES:
        pass
    elif arch.startswith(MODULE):
        problem = f"{arch} is a network that was passed as an object to another process"
        raise HptError(problem, "register it here under this name with register_architecture", setting="arch")
    elif arch.startswith(TIMM):
        check_timm_name(arch)
    elif arch not in architectures():
        close = difflib.get_close_matches(arch, architectures(), n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "try resnet18, resnet50 or shufflenet_v2_x0_5"
        raise HptError(f"torchvision has no classification network {arch!r}", hint, setting="arch")
    if architecture.small_stem and not arch.startswith(("resnet", "resnext", "wide_resnet")):
        raise HptError(f"only for torchvision's ResNets, not for {arch}", "leave it out", setting="small_stem")
    _check_features(architecture)
    _check_patches(architecture)


def _check_features(architecture: Architecture) -> None:
    name, features = architecture.name, architecture.features
    if features and not name.startswith(TIMM) and (features != "cls" or not name.startswith("vit_")):
        problem = f"{name} gives no features but its own"
        raise HptError(problem, f"leave it out, or use a vision transformer of {TIMM}", setting="features")


def _check_patches(architecture: Architecture) -> None:
    name, size, patch = architecture.name, architecture.image_size, patch_size(architecture.name)
    if patch and name not in ARCHITECTURES and size % patch:
        fitting = " or ".join(str(count * patch) for count in (size // patch, size // patch + 1) if count)
        problem = f"{name} cannot take images of {size} pixels, as its patches have {patch}"
        raise HptError(problem, f"use {fitting}", setting="image_size")


def build_backbone(architecture: Architecture, seed: int = 0) -> tuple[nn.Module, int]:
    """Build a network with random weights and remove its classifier.

    Args:
        architecture: its image size is tried out.
        seed: of the weights.

    Returns:
        The backbone, float32 (N, channels, image_size, image_size) to (N, feature size), and its feature size.

    Raises:
        HptError: no such network, or it cannot take images of this size.
    """
    check_architecture(architecture)
    try:
        with seeded(seed):
            backbone = _builder(architecture.name)(architecture)
            if architecture.channels != COLOURS:
                renew(backbone, architecture.channels, architecture.name)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise _wrong_size(architecture, error) from error
    return backbone, try_image_size(backbone, architecture)


def _builder(name: str) -> Callable[[Architecture], nn.Module]:
    if name in ARCHITECTURES:
        return lambda architecture: ARCHITECTURES[name](architecture.image_size)
    return build_timm if name.startswith(TIMM) else _build


def _build(architecture: Architecture) -> nn.Module:
    """A network of torchvision without its classifier."""
    backbone = torchvision.models.get_model(architecture.name, weights=None, **_arguments(architecture))
    if architecture.small_stem:
        width = backbone.conv1.out_channels
        backbone.conv1 = nn.Conv2d(3, width, kernel_size=3, stride=1, padding=1, bias=False)
        nn.init.kaiming_normal_(backbone.conv1.weight, mode="fan_out", nonlinearity="relu")
        backbone.maxpool = nn.Identity()
    _take_classifier_off(backbone)
    return backbone


def with_architecture(backbone: nn.Module, old: Architecture, new: Architecture) -> tuple[nn.Module, int]:
    """A backbone for images of another size, or with other features of its tokens, and its feature size.

    Position embeddings are interpolated; all other weights stay the same.

    Args:
        backbone: in architecture `old`; returned itself where nothing about it differs.

    Raises:
        HptError: the network cannot take images of this size, or has no such features.
    """
    fitted = interpolate_positions(backbone.state_dict(), new)
    if old.features == new.features and not fitted:
        check_architecture(new)
        return backbone, try_image_size(backbone, new)
    network, feature_size = build_backbone(new)
    weights = backbone.state_dict() | fitted
    if differing := sorted(weights.keys() ^ network.state_dict().keys()):
        problem = f"{new.name} has other layers for other features ({differing[0]})"
        raise HptError(problem, "leave it out", setting="features")
    network.load_state_dict(weights)
    return network, feature_size


def classifier_layers(arch: str) -> tuple[str, ...]:
    """Names, in its library, of the layers that `arch` has on top of its backbone."""
    if arch in ARCHITECTURES:
        return ()
    if arch.startswith(TIMM):
        return timm_classifier(arch)
    # Known by name, as a RegNet computes its widths with tensors, which fails on the meta device.
    if arch.startswith(("resnet", "resnext", "wide_resnet", "regnet")):
        return ("fc",)
    quiet = {"init_weights": False} if arch in ("googlenet", "inception_v3") else {}
    with torch.device("meta"):
        network = torchvision.models.get_model(arch, weights=None, **quiet)
    auxiliary = [name for name, _ in network.named_children() if name.lower().startswith("aux")]
    return (_last_layer(network), *auxiliary)


def try_image_size(backbone: nn.Module, architecture: Architecture) -> int:
    """The feature size for images of this size; raises HptError if the network cannot take them."""
    training = backbone.training
    backbone.eval()
    try:
        with torch.no_grad():
            side = architecture.image_size
            features: Tensor = backbone(torch.zeros(1, architecture.channels, side, side))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise _wrong_size(architecture, error) from error
    backbone.train(training)
    if architecture.name in ARCHITECTURES and features.flatten(1).shape != features.shape[:2]:
        shape = tuple(features.shape)
        raise HptError(f"{architecture.name} gives {shape} instead of (1, features) per image", setting="arch")
    return features.flatten(1).shape[1]


def _wrong_size(architecture: Architecture, error: Exception) -> HptError:
    problem = f"{architecture.name} cannot take images of {architecture.image_size} pixels ({one_line(error)})"
    return HptError(problem, setting="image_size")


def _arguments(architecture: Architecture) -> dict[str, Any]:
    """Extra arguments that a few constructors need."""
    arch, image_size = architecture.name, architecture.image_size
    if arch in ("googlenet", "inception_v3"):
        return {"aux_logits": False, "init_weights": True}
    if arch.startswith("vit_"):
        return {"image_size": image_size}
    if arch == "maxvit_t":
        return {"input_size": (image_size, image_size)}
    return {}


def _last_layer(network: nn.Module) -> str:
    """Name of the layer that computes the classes."""
    layers = [
        name
        for name, layer in network.named_modules()
        if getattr(layer, "out_features", getattr(layer, "out_channels", None)) == IMAGENET_CLASSES
        and not name.lower().startswith("aux")
    ]
    return layers[-1]


def _take_classifier_off(backbone: nn.Module) -> None:
    """Replace the last layer, and the dropout of its head, by the identity."""
    last = _last_layer(backbone)
    head_name = last.rpartition(".")[0]
    head = backbone.get_submodule(head_name)
    for name, layer in head.named_children():
        if isinstance(layer, nn.Dropout):
            setattr(head, name, nn.Identity())
    backbone.set_submodule(last, nn.Identity())


def batch_norms(network: nn.Module) -> list[BatchNorm]:
    """The BatchNorm layers of a network."""
    return [layer for layer in network.modules() if isinstance(layer, BatchNorm)]


def keep_statistics(backbone: nn.Module) -> None:
    """Let BatchNorm normalise by the statistics that it has, and leave them as they are, in training mode too."""
    for layer in batch_norms(backbone):
        layer.eval()
