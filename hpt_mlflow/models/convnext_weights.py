"""ConvNeXts (Liu et al., CVPR 2022; V2: Woo et al., CVPR 2023) in the layouts of Meta, Hugging Face and timm.

Those that DINOv3 has distilled are among them. The tensors get timm's names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from hpt_mlflow.models.renaming import Recognised, Rules, rename, take_out
from hpt_mlflow.models.timm_networks import TIMM

HUGGING_FACE: Rules = (
    (r"^(?:encoder|model)\.stages\.", "stages."),
    (r"^embeddings\.patch_embeddings\.", "stem.0."),
    (r"^embeddings\.layernorm\.", "stem.1."),
    (r"^stages\.0\.downsample_layers\.", "stem."),
    (r"^(stages\.\d+)\.downsampl(?:ing_layer|e_layers)\.", r"\1.downsample."),
    (r"^(stages\.\d+)\.layers\.", r"\1.blocks."),
    (r"\.depthwise_conv\.", ".conv_dw."),
    (r"\.pointwise_conv([12])\.", r".mlp.fc\1."),
    (r"^(stages\..+)\.(?:layernorm|layer_norm)\.", r"\1.norm."),
    (r"\.layer_scale_parameter$", ".gamma"),
    (r"^(?:layernorm|layer_norm)\.", "head.norm."),
)
META: Rules = (
    (r"^downsample_layers\.0\.", "stem."),
    (r"^downsample_layers\.(\d)\.", r"stages.\1.downsample."),
    (r"^stages\.(\d)\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"\.dwconv\.", ".conv_dw."),
    (r"\.pwconv([12])\.", r".mlp.fc\1."),
    (r"(blocks\.\d+)\.grn\.(?:gamma|weight)$", r"\1.mlp.grn.weight"),
    (r"(blocks\.\d+)\.grn\.(?:beta|bias)$", r"\1.mlp.grn.bias"),
    (r"^norm\.", "head.norm."),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
)
LEFT_OUT = {r"norms\.3\.": "second name of the last normalisation", r"decoder\.|mask_token|proj\.|pred\.": "decoder"}
# Blocks of each stage and width of the first one.
V1 = {
    ((3, 3, 9, 3), 96): "convnext_tiny",
    ((3, 3, 27, 3), 96): "convnext_small",
    ((3, 3, 27, 3), 128): "convnext_base",
    ((3, 3, 27, 3), 192): "convnext_large",
    ((3, 3, 27, 3), 256): "convnext_xlarge",
}
V2 = {
    ((2, 2, 6, 2), 40): "convnextv2_atto",
    ((2, 2, 6, 2), 48): "convnextv2_femto",
    ((2, 2, 6, 2), 64): "convnextv2_pico",
    ((2, 2, 8, 2), 80): "convnextv2_nano",
    ((3, 3, 9, 3), 96): "convnextv2_tiny",
    ((3, 3, 27, 3), 128): "convnextv2_base",
    ((3, 3, 27, 3), 192): "convnextv2_large",
    ((3, 3, 27, 3), 352): "convnextv2_huge",
}


def recognise_convnext(found: Mapping[str, Tensor]) -> Recognised | None:
    """The ConvNeXt of a state; None for other networks, and those with torchvision's names."""
    renamed = rename(found, HUGGING_FACE)
    is_hugging_face = set(renamed) != set(found)
    tensors = rename(renamed, META)
    if "stem.0.weight" not in tensors or "stages.0.blocks.0.conv_dw.weight" not in tensors:
        return None
    left_out = take_out(tensors, LEFT_OUT)
    blocks = {match.groups() for name in tensors if (match := re.match(r"stages\.(\d)\.blocks\.(\d+)\.", name))}
    depths = tuple(sum(stage == number for stage, _ in blocks) for number in "0123")
    is_v2 = "stages.0.blocks.0.mlp.grn.weight" in tensors
    name = (V2 if is_v2 else V1).get((depths, len(tensors["stem.0.weight"])))
    layout = "huggingface" if is_hugging_face else "timm" if set(tensors) == set(found) else "meta"
    if name is None and layout == "timm":
        return None
    return Recognised(f"convnext-{layout}", name and TIMM + name, tensors, left_out)
