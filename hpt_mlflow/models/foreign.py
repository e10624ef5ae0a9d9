"""Weights from other programs, fitted to a backbone of this project, with every tensor accounted for.

The formats, and the names of tensors by which they are recognised:

| format | names |
|---|---|
| moco-v1, moco-v2 | `encoder_q.*` of facebookresearch/moco; v1 has one layer `fc`, v2 has `fc.0` and `fc.2` |
| openselfsup | `backbone.*` next to `neck.*`, `head.*`, `queue`; or the output of its `extract_backbone_weights.py` |
| lightly | `backbone.0.weight`, `backbone.4.0.conv1.weight`: the children of a ResNet in a row |
| KIND-LAYOUT, such as dinov2-meta | see `vit_weights` and `convnext_weights`; LAYOUT is meta, huggingface or timm |
| torchvision, timm | the names of the network itself; for ResNets they are the same in both |
| hpt_mlflow | `backbone.safetensors` next to its `backbone.json` |
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hpt_mlflow.errors import HptError, printable
from hpt_mlflow.models.architecture import Architecture, whole_patches
from hpt_mlflow.models.backbone import build_backbone, classifier_layers, with_architecture
from hpt_mlflow.models.checkpoint import CARD_FILE, WEIGHTS_FILE, load_backbone
from hpt_mlflow.models.convnext_weights import recognise_convnext
from hpt_mlflow.models.delta import DELTA_FILE
from hpt_mlflow.models.positions import interpolate_positions
from hpt_mlflow.models.renaming import Recognised
from hpt_mlflow.models.resnets import RESNETS, has_small_stem, recognise_resnet
from hpt_mlflow.models.timm_networks import TIMM
from hpt_mlflow.models.vit_weights import recognise_vit
from hpt_mlflow.models.weight_file import WeightFile, read_weight_file, sha256
from hpt_mlflow.pixels import RGB, PixelFormat

Statistics = tuple[float, ...]
# Of ImageNet's images, in [0, 1]: the default if a file does not say what its network was normalised with.
IMAGENET_MEAN: Statistics = (0.485, 0.456, 0.406)
IMAGENET_STD: Statistics = (0.229, 0.224, 0.225)
IMAGENET_SIZE = 224
# The children of torchvision's ResNets in their order; those without tensors never occur in a state.
RESNET_CHILDREN = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4", "avgpool", "fc")
# Parts of a self-supervised training other than its backbone, by the first word of a name.
OTHER_PARTS = {
    "key encoder": "encoder_k backbone_momentum momentum_encoder target_net teacher_backbone",
    "second name of the backbone": "encoder_q online_net encoder",
    "decoder": "decoder",
    "head": "neck head projection_head projection_head_momentum prediction_head prototypes classification_head "
    "online_classifier teacher_head student_head classifier predictor dino_head ibot_head",
    "queue": "queue queue_ptr memory_bank criterion",
    "preprocessing": "data_preprocessor",
}
# Before the names of a backbone, in the programs that wrote the file: the last ones are Hugging Face's.
BACKBONES = (
    "backbone encoder_q base_encoder dinov2 dinov2_with_registers dinov3_vit dinov3_convnext vit convnext convnextv2"
)
OTHER_PART_OF = {word: part for part, words in OTHER_PARTS.items() for word in words.split()}
SUFFIXES = re.compile(r"(\.(pth|pt|tar|ckpt|safetensors|bin))+$", re.IGNORECASE)
NAMED_IN_ERRORS = 3


@dataclass(frozen=True)
class ForeignWeights:
    """Weights that fit a backbone of this project.

    Attributes:
        name: in a chain: that of their file without its ending, or of what they were trained on.
        file: name of their file.
        format: see the table of this module.
        architecture: the backbone that they fit.
        state: its state, complete.
        left_out: unused tensors and other entries of the file, with what each of them is.
        sha256: checksum of the file, in hexadecimal.
        mean, std: channel statistics that they were trained with, in [0, 1].
        chain: names of the datasets behind them, oldest first.
        pixels: what images are decoded to.
    """

    name: str
    file: str
    format: str
    architecture: Architecture
    state: Mapping[str, Tensor]
    left_out: Mapping[str, str]
    sha256: str
    mean: Statistics = IMAGENET_MEAN
    std: Statistics = IMAGENET_STD
    chain: tuple[str, ...] = ()
    pixels: PixelFormat = RGB


def read_weights(
    file: Path,
    arch: str | None = None,
    image_size: int | None = None,
    features: str | None = None,
    default_size: int = IMAGENET_SIZE,
) -> ForeignWeights:
    """Read weights, recognise their format, and fit them to a backbone. Nothing in the file is executed.

    Args:
        file: of safetensors, or of `torch.save`.
        arch: of the backbone. Default: the ResNet, ConvNeXt or vision transformer that they are recognised as.
        image_size: side of the images in pixels, for networks that take only one size.
        features: of a vision transformer, see `Architecture`. Default: the class token.
        default_size: the image size if none is given; rounded up to whole patches.

    Raises:
        HptError: the file cannot be read safely, its format is unknown, or a tensor does not fit; says which.
    """
    name = printable(str(file))
    if file.name == WEIGHTS_FILE and file.with_name(CARD_FILE).is_file():
        return _read_own(file, name, arch, image_size, features)
    if file.name == DELTA_FILE:
        raise HptError(
            f"{name} is only the difference from another model",
            "register the whole with hpt make-whole, or write it with hpt export",
            setting="weights",
        )
    content = read_weight_file(file, name)
    layout, found, left_out, unknown = _take_backbone(content)
    known = _recognise(found, layout, arch)
    if known.arch is None and arch is None:
        raise HptError(
            f"{name} does not tell its network (its tensors are {_some(list(content.tensors))})",
            f"name it with arch, such as resnet50 or {TIMM}NAME",
            setting="weights",
        )
    arch = arch or known.arch or ""
    size = image_size or whole_patches(arch, default_size)
    small_stem = known.arch in RESNETS and not arch.startswith(TIMM) and has_small_stem(found)
    if features is None and arch.startswith(TIMM) and "cls_token" in known.tensors and known.format:
        features = "cls"
    architecture = Architecture(arch, size, small_stem, features=features or "")
    state, heads = fit(known.tensors, architecture, name, known.arch, unknown)
    left_out |= known.left_out | heads | dict.fromkeys(content.beside, "not a part of the network")
    stem = printable(SUFFIXES.sub("", file.name) or file.name)
    return ForeignWeights(
        name=stem,
        file=printable(file.name),
        format=known.format or _format(layout, arch, content, file),
        architecture=architecture,
        state=state,
        left_out=left_out,
        sha256=content.sha256,
        chain=(stem,),
    )


def _recognise(found: dict[str, Tensor], layout: str, arch: str | None) -> Recognised:
    """The network that tensors look like, and their names in it."""
    known = recognise_vit(found, layout, arch) or recognise_convnext(found)
    return known or Recognised("", recognise_resnet(found), found, {})


def fit(
    found: Mapping[str, Tensor],
    architecture: Architecture,
    name: str,
    recognised: str | None = None,
    unknown: Sequence[str] = (),
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Fit tensors one to one to a backbone, which has no classifier.

    Args:
        found: by the names of the network.
        name: of the weights, in errors.
        recognised: the network that they look like.
        unknown: names of further tensors that no known part has.

    Returns:
        The backbone's state, and the tensors of `found` that were left out, with what each of them is.

    Raises:
        HptError: a tensor is missing, unexpected, of another shape, or not finite.
    """
    arch = architecture.name
    expected = build_backbone(architecture)[0].state_dict()
    _refuse_other_patches(found, expected, arch, name, recognised)
    found = {**found, **interpolate_positions(found, architecture)}
    state = {key: _shaped_like(expected[key], tensor) for key, tensor in found.items() if key in expected}
    extra = [key for key in found if key not in expected]
    layers = tuple(f"{layer}." for layer in classifier_layers(arch))
    heads = {key: "classifier or projection head" for key in extra if key.startswith(layers)}
    for key in expected:
        # PyTorch before 0.4.1 did not count batches; the count is read only if BatchNorm's momentum is None.
        if key.endswith("num_batches_tracked") and key not in state:
            state[key] = torch.zeros((), dtype=torch.long)
    shapes = [
        f"{printable(key)} is {_shape(state[key])} instead of {_shape(expected[key])}"
        for key in state
        if state[key].shape != expected[key].shape
    ]
    problems = {
        "missing": [key for key in expected if key not in state],
        "unexpected": [*(key for key in extra if key not in heads), *unknown],
        "of another shape": shapes,
        "not finite": [key for key in state if not torch.isfinite(state[key]).all()],
    }
    listed = [f"{len(keys)} {what} ({_some(keys)})" for what, keys in problems.items() if keys]
    if listed:
        hint = f"; they look like a {recognised}" if recognised not in (None, arch, arch.removeprefix(TIMM)) else ""
        stem = " with the small stem" if architecture.small_stem else ""
        raise HptError(f"{name}: these weights do not fit {arch}{stem}: {'; '.join(listed)}{hint}", setting="weights")
    return {key: state[key].to(expected[key].dtype).contiguous() for key in expected}, heads


def _refuse_other_patches(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], arch: str, name: str, recognised: str | None
) -> None:
    """Raise HptError if a vision transformer has other patches or another width than its weights."""
    theirs, own = (tensors.get("patch_embed.proj.weight") for tensors in (found, expected))
    if theirs is None or own is None or theirs.shape == own.shape or theirs.ndim != 4:
        return
    raise HptError(
        f"{name}: these weights have {_patches(theirs)}, and {arch} has {_patches(own)}",
        f"use {recognised}, or leave arch out" if recognised else "name their network with arch",
        setting="weights",
    )


def _patches(embedding: Tensor) -> str:
    return f"patches of {embedding.shape[-1]} pixels and a width of {len(embedding)}"


def _shaped_like(expected: Tensor, tensor: Tensor) -> Tensor:
    """A tensor with the axes of length 1 of another one: the same layer is a matrix here and a kernel there."""
    same = [length for length in expected.shape if length > 1] == [length for length in tensor.shape if length > 1]
    return tensor.view(expected.shape) if same and tensor.ndim and expected.ndim != tensor.ndim else tensor


def _read_own(file: Path, name: str, arch: str | None, image_size: int | None, features: str | None) -> ForeignWeights:
    """A backbone that this project has saved."""
    try:
        backbone, card = load_backbone(file.parent, name)
    except HptError as error:
        raise error.about(error.setting or "weights") from error
    architecture = card.architecture.requested(name, arch, image_size, small_stem=False, features=features)
    backbone, _ = with_architecture(backbone, card.architecture, architecture)
    return ForeignWeights(
        name=card.chain[-1] if card.chain else file.parent.name,
        file=file.name,
        format="hpt_mlflow",
        architecture=architecture,
        state=backbone.state_dict(),
        left_out={},
        sha256=sha256(file),
        mean=card.mean,
        std=card.std,
        chain=card.chain or (file.parent.name,),
        pixels=card.pixels,
    )


def _take_backbone(content: WeightFile) -> tuple[str, dict[str, Tensor], dict[str, str], list[str]]:
    """Split a network into its backbone and its other parts.

    Returns:
        The layout, the backbone's tensors by torchvision's names, what is left out, and names of tensors that are
        neither.
    """
    tensors = content.tensors
    first_words = {name.partition(".")[0] for name in tensors}
    prefix = next((f"{word}." for word in BACKBONES.split() if word in first_words), "")
    inside = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    outside = {name: OTHER_PART_OF.get(name.partition(".")[0]) for name in tensors if not name.startswith(prefix)}
    left_out = {name: part for name, part in outside.items() if part}
    unknown = [name for name, part in outside.items() if not part]
    layout = prefix or "bare"
    if "0.weight" in inside and any(name.startswith("4.0.") for name in inside):
        layout = "children"
        # Names that are not a child's stay unchanged, and would hide the child of the same name.
        unknown += [name for name in inside if _name_of_child(name) == name]
        inside = {_name_of_child(name): tensor for name, tensor in inside.items() if name not in unknown}
    return layout, inside, left_out, unknown


def _name_of_child(name: str) -> str:
    number, dot, rest = name.partition(".")
    known = number.isdigit() and int(number) < len(RESNET_CHILDREN)
    return f"{RESNET_CHILDREN[int(number)] if known else number}{dot}{rest}"


def _format(layout: str, arch: str, content: WeightFile, file: Path) -> str:
    """The name of a file's format."""
    names = content.tensors
    if layout == "encoder_q.":
        return "moco-v2" if any(name.startswith("encoder_q.fc.2.") for name in names) else "moco-v1"
    if layout == "children" or any(name.startswith("projection_head.") for name in names):
        return "lightly"
    if layout == "backbone." or content.author:
        return "openselfsup"
    return "timm" if arch.startswith(TIMM) or file.suffix == ".safetensors" else "torchvision"


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"


def _some(names: Sequence[str]) -> str:
    """The first few names."""
    more = ", ..." if len(names) > NAMED_IN_ERRORS else ""
    return ", ".join(printable(name) for name in names[:NAMED_IN_ERRORS]) + more
