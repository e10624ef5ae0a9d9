"""Vision transformers in the layouts of Meta, Hugging Face and timm, by timm's names.

| kind | its mark | network of timm |
|---|---|---|
| DINOv3 (arXiv 2508.10104) | registers, no position embeddings | `vit_SIZE_patch16_dinov3`, `..._qkvb` with biases |
| DINOv2 (arXiv 2304.07193) | position embeddings, layer scale | `vit_SIZE_patch14_dinov2`, `..._reg4_dinov2` |
| MoCo-v3 (arXiv 2104.02057) | `base_encoder` | `vit_SIZE_patch16_224` |
| others, such as MAE and DINO | position embeddings | `vit_SIZE_patchN_224` |
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from hpt_mlflow.models.renaming import Recognised, Rules, rename, take_out
from hpt_mlflow.models.timm_networks import TIMM, timm_networks

# Hugging Face has renamed parts of attention and of the perceptron over the years; its files have either names.
HUGGING_FACE: Rules = (
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.(?:projection\.)?", "patch_embed.proj."),
    (r"^embeddings\.(cls|mask|register)_", r"\1_"),
    (r"^(?:encoder\.|model\.)?layers?\.(\d+)\.", r"blocks.\1."),
    (r"\.attention\.(?:attention\.)?(?:query|q_proj)\.", ".attn.q."),
    (r"\.attention\.(?:attention\.)?(?:key|k_proj)\.", ".attn.k."),
    (r"\.attention\.(?:attention\.)?(?:value|v_proj)\.", ".attn.v."),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"^(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"\.mlp\.up_proj\.", ".mlp.fc1_x."),
    (r"^layernorm\.", "norm."),
)
META: Rules = (
    (r"^(?:register|storage)_tokens$", "reg_token"),
    # Blocks in chunks; those of a chunk are numbered like all others.
    (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),
    (r"\.mlp\.(?:w12|weights_in)\.", ".mlp.fc1."),
    (r"\.mlp\.(?:w3|weights_out|down_proj)\.", ".mlp.fc2."),
    (r"\.mlp\.(?:w1|gate_proj)\.", ".mlp.fc1_g."),
    (r"\.mlp\.w2\.", ".mlp.fc1_x."),
)
# DINOv3 is an EVA in timm, whose layer scale has other names.
TO_EVA: Rules = ((r"\.ls([12])\.gamma$", r".gamma_\1"),)
LEFT_OUT = {
    r"mask_token$": "mask token",
    r"decoder": "decoder",
    r"pooler\.": "pooler",
    r"local_cls_norm\.": "normalisation of small crops",
    r"rope_embed\.periods$": "periods of positions, which the network computes",
    r"blocks\.\d+\.attn\.qkv\.bias_mask$": "mask of biases",
}
# Base of the periods of DINOv3's rotary positions (reference code: `pos_embed_rope_base`).
ROTARY_BASE = 100.0
SIZES = {192: "tiny", 384: "small", 768: "base", 1024: "large", 1280: "huge", 1536: "giant", 4096: "7b"}


def recognise_vit(found: Mapping[str, Tensor], wrapper: str, arch: str | None) -> Recognised | None:
    """The vision transformer of a state; None for other networks, and those with torchvision's names.

    Args:
        wrapper: the prefix that all names had in their file.
        arch: the network that the user asks for; its biases count.
    """
    is_hugging_face = any(name.startswith("embeddings.") for name in found)
    tensors = rename(rename(found, HUGGING_FACE) if is_hugging_face else found, META)
    masked = [name.removesuffix("_mask") for name in tensors if name.endswith(".bias_mask")]
    periods = tensors.get("rope_embed.periods")
    left_out = take_out(tensors, LEFT_OUT)
    _mask_keys(tensors, masked)
    _join_attention(tensors)
    kind = _kind(tensors, wrapper)
    if kind is None or (periods is not None and not _are_usual(periods)):
        return None
    if kind == "dinov3":
        tensors, zeros = _as_eva(tensors, biased=_has_biases(tensors) or (arch or "").endswith("_qkvb"))
        left_out |= zeros
    elif kind == "dinov2":
        _pack_perceptron(tensors)
        _split_positions(tensors)
    name = _network(kind, tensors)
    layout = "huggingface" if is_hugging_face else "meta" if left_out or set(tensors) != set(found) else "timm"
    family = "mae" if "decoder" in left_out.values() else kind
    if name is None and layout == "timm":
        return None
    return Recognised(family if family == "moco-v3" else f"{family}-{layout}", name, tensors, left_out)


def _kind(tensors: Mapping[str, Tensor], wrapper: str) -> str | None:
    """The kind of a transformer by the table above; `vit` for others, None for other networks."""
    needed = (
        "cls_token",
        "patch_embed.proj.weight",
        "norm.weight",
        "blocks.0.norm1.weight",
        "blocks.0.attn.qkv.weight",
    )
    if any(name not in tensors for name in needed) or tensors["patch_embed.proj.weight"].ndim != 4:
        return None
    if "pos_embed" not in tensors:
        return "dinov3" if "reg_token" in tensors else None
    if "blocks.0.ls1.gamma" in tensors:
        return "dinov2"
    return "moco-v3" if wrapper == "base_encoder." else "vit"


def _network(kind: str, tensors: Mapping[str, Tensor]) -> str | None:
    """The network of timm with the sizes of a state; None if there is none."""
    width, _, patch, _ = tensors["patch_embed.proj.weight"].shape
    size, registers = SIZES.get(width), tensors["reg_token"].shape[1] if "reg_token" in tensors else 0
    if kind == "dinov3":
        plus = "_plus" if "blocks.0.mlp.fc1_g.weight" in tensors and size in ("small", "huge") else ""
        biases = "_qkvb" if "blocks.0.attn.q_bias" in tensors else ""
        name = f"vit_{size}{plus}_patch{patch}_dinov3{biases}"
    elif kind == "dinov2":
        name = f"vit_{size}_patch{patch}{f'_reg{registers}' if registers else ''}_dinov2"
    else:
        variant = "_mocov3" if kind == "moco-v3" and size == "small" else ""
        name = f"vit_{size}_patch{patch}_224{variant}"
    return TIMM + name if name in timm_networks() else None


def _mask_keys(tensors: dict[str, Tensor], biases: list[str]) -> None:
    """Set biases of keys to 0 where DINOv3 masks them, whatever the file has there; in place."""
    for name in biases:
        query, key, value = tensors[name].chunk(3)
        tensors[name] = torch.cat([query, torch.zeros_like(key), value])


def _join_attention(tensors: dict[str, Tensor]) -> None:
    """Queries, keys and values as one layer; keys may have no bias. In place."""
    for name in [name for name in tensors if name.endswith(".attn.q.weight")]:
        block = name.removesuffix("q.weight")
        names = [f"{block}{part}" for part in "qkv"]
        if any(f"{part}.weight" not in tensors for part in names):
            continue
        tensors[f"{block}qkv.weight"] = torch.cat([tensors.pop(f"{part}.weight") for part in names])
        if f"{names[0]}.bias" in tensors and f"{names[2]}.bias" in tensors:
            query, value = tensors.pop(f"{names[0]}.bias"), tensors.pop(f"{names[2]}.bias")
            key = tensors.pop(f"{names[1]}.bias", torch.zeros_like(query))
            tensors[f"{block}qkv.bias"] = torch.cat([query, key, value])


def _has_biases(tensors: Mapping[str, Tensor]) -> bool:
    """Whether queries or values have a bias; in most DINOv3 networks all of them are 0."""
    return any(
        name.endswith(".attn.q_bias") or (name.endswith(".attn.qkv.bias") and bool(tensor.any()))
        for name, tensor in tensors.items()
    )


def _as_eva(tensors: dict[str, Tensor], biased: bool) -> tuple[dict[str, Tensor], dict[str, str]]:
    """DINOv3 by timm's names, and what is left out of it."""
    tensors = rename(tensors, TO_EVA)
    # A perceptron that is not gated has one layer there.
    if not any(name.endswith(".fc1_g.weight") for name in tensors):
        tensors = rename(tensors, ((r"\.fc1_x\.", ".fc1."),))
    left_out = {}
    for name in [name for name in tensors if name.endswith(".attn.qkv.bias")]:
        query, key, value = tensors[name].chunk(3)
        if biased and not key.any():
            tensors[name.replace("qkv.bias", "q_bias")] = query
            tensors[name.replace("qkv.bias", "v_bias")] = value
            del tensors[name]
        elif not biased:
            left_out[name] = "biases that are all 0"
            del tensors[name]
    return tensors, left_out


def _pack_perceptron(tensors: dict[str, Tensor]) -> None:
    """The two halves of DINOv2's gated perceptron as one layer; in place."""
    for name in [name for name in tensors if ".mlp.fc1_g." in name]:
        other = name.replace("fc1_g", "fc1_x")
        if other in tensors:
            tensors[name.replace("fc1_g", "fc1")] = torch.cat([tensors.pop(name), tensors.pop(other)])


def _split_positions(tensors: dict[str, Tensor]) -> None:
    """With registers, add the class token's position to it, as timm has none for it; in place."""
    positions = tensors["pos_embed"]
    if "reg_token" in tensors and positions.ndim == 3 and math.isqrt(positions.shape[1]) ** 2 != positions.shape[1]:
        tensors["cls_token"] = tensors["cls_token"] + positions[:, :1]
        tensors["pos_embed"] = positions[:, 1:].contiguous()


def _are_usual(periods: Tensor) -> bool:
    """Whether these are the periods that timm's DINOv3 computes; a file may have them in bfloat16."""
    usual = ROTARY_BASE ** (torch.arange(len(periods)) / len(periods))
    return torch.allclose(periods.float(), usual, rtol=0.01)
