"""Writing a backbone as other libraries read it."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from hpt_mlflow.errors import HptError, one_line
from hpt_mlflow.files import replacing
from hpt_mlflow.models.channels import COLOURS
from hpt_mlflow.models.checkpoint import BackboneCard, copy_to_cpu
from hpt_mlflow.models.onnx_graph import EMBEDDING, IMAGES, network_graph, require_onnx
from hpt_mlflow.models.resnets import RESNETS
from hpt_mlflow.models.timm_networks import TIMM, import_timm


def export_backbone(backbone: nn.Module, card: BackboneCard, format: str, file: Path) -> None:
    """Write a backbone into a file, replacing an existing one.

    Args:
        backbone: on the CPU.
        format: one of `FORMATS`. torchvision: a state dict for `torchvision.models.get_model(arch)`, which lacks only
            the classifier. timm: one for `timm.create_model(name, num_classes=0)`. Both are safetensors if the file
            ends in .safetensors, otherwise what `torch.load` reads with `weights_only`. detectron2: what
            `DetectionCheckpointer` reads, for MODEL.RESNETS.STRIDE_IN_1X1 False and RGB images. onnx: a model from
            float32 (N, channels, size, size), normalised, to float32 (N, feature size).

    Raises:
        HptError: the format has no such network, a package is missing, or the file cannot be written.
    """
    if format not in WRITERS:
        raise HptError(f"{format!r} is unknown", f"use {', '.join(FORMATS)}", setting="format")
    if file.is_dir():
        raise HptError(f"{file} is a folder", "name a file in it", setting="file")
    write = WRITERS[format](backbone, card, file)
    try:
        with replacing(file) as temporary:
            write(temporary)
    except OSError as error:
        raise HptError(f"{file} cannot be written ({error.strerror or one_line(error)})", setting="file") from error


def _torchvision(backbone: nn.Module, card: BackboneCard, file: Path) -> Callable[[Path], None]:
    if card.architecture.name.startswith(TIMM):
        raise HptError(f"torchvision has no {card.architecture.name}", "use timm or onnx", setting="format")
    _refuse_small_stem(card, "torchvision")
    return _state_writer(backbone)


def _timm(backbone: nn.Module, card: BackboneCard, file: Path) -> Callable[[Path], None]:
    name = card.architecture.name
    if not name.startswith(TIMM):
        # Only the ResNets have the same names and the same arithmetic in both libraries.
        if name not in RESNETS or name not in import_timm().list_models():
            raise HptError(
                f"timm has no {name} with torchvision's weights", "use torchvision or onnx", setting="format"
            )
        _refuse_small_stem(card, "timm")
    return _state_writer(backbone)


def _detectron2(backbone: nn.Module, card: BackboneCard, file: Path) -> Callable[[Path], None]:
    if card.architecture.name not in RESNETS:
        raise HptError(f"detectron2 reads ResNets, not {card.architecture.name}", "use onnx", setting="format")
    _refuse_small_stem(card, "detectron2")
    if card.architecture.channels != COLOURS:
        problem = f"detectron2's ResNets take RGB, and this one {card.architecture.channels} channels"
        raise HptError(problem, "use torchvision or onnx", setting="format")
    # Detectron2 takes .pkl for a pickle and .pyth for a file of pycls.
    if file.suffix != ".pth":
        raise HptError(f"{file.name!r} has the wrong ending for detectron2", "let it end in .pth", setting="file")
    weights = {detectron2_name(name): tensor for name, tensor in copy_to_cpu(backbone.state_dict()).items()}
    # Tensors instead of the reference code's arrays: DetectionCheckpointer reads both, torch.load with `weights_only`
    # reads only tensors.
    content = {"model": weights, "__author__": "hpt_mlflow", "matching_heuristics": True}
    return lambda path: torch.save(content, path)


def detectron2_name(name: str) -> str:
    """The name in detectron2's ResNet of a torchvision tensor: `res2.0.conv1.norm.weight` for `layer1.0.bn1.weight`.

    Source: convert-pretrain-to-detectron2.py of MoCo and of OpenSelfSup.
    """
    layer, _, rest = name.partition(".")
    if layer.startswith("layer"):
        layer = f"res{int(layer.removeprefix('layer')) + 1}"
    else:
        layer, rest = "stem", name
    for number in "123":
        rest = rest.replace(f"bn{number}.", f"conv{number}.norm.")
    rest = rest.replace("downsample.0.", "shortcut.").replace("downsample.1.", "shortcut.norm.")
    return f"{layer}.{rest}"


def _onnx(backbone: nn.Module, card: BackboneCard, file: Path) -> Callable[[Path], None]:
    require_onnx("format")
    return lambda path: _write_onnx(backbone, card, path)


def _write_onnx(backbone: nn.Module, card: BackboneCard, file: Path) -> None:
    onnx = importlib.import_module("onnx")
    model = network_graph(nn.Sequential(backbone, nn.Flatten()), card, IMAGES, EMBEDDING)
    onnx.helper.set_model_props(model, _description(card))
    onnx.checker.check_model(model)
    onnx.save(model, str(file))


def _description(card: BackboneCard) -> dict[str, str]:
    """How to prepare images; lists as JSON."""
    return {
        "arch": card.architecture.name,
        "chain": " > ".join(card.chain),
        "image_size": str(card.architecture.image_size),
        "mean": json.dumps(card.mean),
        "std": json.dumps(card.std),
    } | ({} if card.pixels.is_rgb else {"pixels": json.dumps(card.pixels.as_values())})


def _state_writer(backbone: nn.Module) -> Callable[[Path], None]:
    state = copy_to_cpu(backbone.state_dict())

    def write(path: Path) -> None:
        if path.suffix == ".safetensors":
            safetensors.torch.save_file(state, path)
        else:
            torch.save(state, path)

    return write


def _refuse_small_stem(card: BackboneCard, library: str) -> None:
    if card.architecture.small_stem:
        problem = f"{library} has no {card.architecture.name} with the stem for small images"
        raise HptError(problem, "use onnx", setting="format")


WRITERS: dict[str, Callable[[nn.Module, BackboneCard, Path], Callable[[Path], None]]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "detectron2": _detectron2,
    "onnx": _onnx,
}
FORMATS = tuple(WRITERS)
