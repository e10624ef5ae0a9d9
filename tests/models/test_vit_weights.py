"""Weights in the layouts of Meta, Hugging Face and timm, against the networks of transformers.

The networks are narrow: `narrow` gives timm's a width of 192 and two blocks.
"""

import pytest
import safetensors.torch
import timm
import torch
import transformers

from hpt_mlflow.errors import HptError
from hpt_mlflow.models.architecture import Architecture
from hpt_mlflow.models.backbone import build_backbone, with_architecture
from hpt_mlflow.models.foreign import read_weights
from hpt_mlflow.models.timm_networks import VARIANTS

WIDTH, HEADS = 192, 3
SIZES = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": HEADS}
PERCEPTRON = {"intermediate_size": 4 * WIDTH}
NARROW = {"embed_dim": WIDTH, "depth": 2, "num_heads": HEADS}


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    """Names that timm would give to its networks if they were as narrow."""
    for name, real in {
        "vit_tiny_patch14_dinov2": "vit_small_patch14_dinov2",
        "vit_tiny_patch14_reg4_dinov2": "vit_small_patch14_reg4_dinov2",
        "vit_tiny_patch16_dinov3": "vit_small_patch16_dinov3",
        "vit_tiny_patch16_dinov3_qkvb": "vit_small_patch16_dinov3_qkvb",
        "vit_tiny_patch16_224": "vit_small_patch16_224",
    }.items():
        monkeypatch.setitem(VARIANTS, name, (real, NARROW))


def randomised(network):
    """No two tensors alike, and none 0 or 1 as at the start."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return network.eval()


def dinov2(registers=False, gated=False, **sizes):
    kind = "Dinov2WithRegisters" if registers else "Dinov2"
    settings = SIZES | {"image_size": 70, "patch_size": 14, "use_swiglu_ffn": gated} | sizes
    model = getattr(transformers, f"{kind}Model")
    return randomised(model(getattr(transformers, f"{kind}Config")(**settings)))


def dinov3(gated=False, biases=True, **sizes):
    settings = SIZES | PERCEPTRON | {"image_size": 64, "patch_size": 16, "num_register_tokens": 4} | sizes
    settings |= {"use_gated_mlp": True, "hidden_act": "silu"} if gated else {}
    model = randomised(transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**settings)))
    if not biases:
        for name, parameter in model.named_parameters():
            if name.endswith(("q_proj.bias", "v_proj.bias")):
                parameter.data.zero_()
    return model


def plain(**sizes):
    settings = SIZES | PERCEPTRON | {"image_size": 64, "patch_size": 16, "layer_norm_eps": 1e-6} | sizes
    return randomised(transformers.ViTModel(transformers.ViTConfig(**settings), add_pooling_layer=False))


def as_published(model):
    """The names of transformers before version 5, which the files on the Hub have."""
    older = {
        "dinov2": {
            ".attention.q_proj.": ".attention.attention.query.",
            ".attention.k_proj.": ".attention.attention.key.",
            ".attention.v_proj.": ".attention.attention.value.",
            ".attention.o_proj.": ".attention.output.dense.",
        },
        "dinov3_vit": {"model.layer.": "layer."},
        "vit": {
            "layers.": "encoder.layer.",
            ".attention.q_proj.": ".attention.attention.query.",
            ".attention.k_proj.": ".attention.attention.key.",
            ".attention.v_proj.": ".attention.attention.value.",
            ".attention.o_proj.": ".attention.output.dense.",
            ".mlp.fc1.": ".intermediate.dense.",
            ".mlp.fc2.": ".output.dense.",
        },
    }
    state = dict(model.state_dict())
    for old, new in older[model.config.model_type.removesuffix("_with_registers")].items():
        state = {name.replace(old, new): tensor for name, tensor in state.items()}
    return state


def as_meta(model):
    """The names of facebookresearch/dinov2, dinov3 and mae, as transformers' conversion scripts take them."""
    version = model.config.model_type
    state, meta = dict(model.state_dict()), {}
    places = {
        "embeddings.position_embeddings": "pos_embed",
        "embeddings.register_tokens": "storage_tokens" if version == "dinov3_vit" else "register_tokens",
        "embeddings.patch_embeddings.projection.": "patch_embed.proj.",
        "embeddings.patch_embeddings.": "patch_embed.proj.",
        "embeddings.": "",
        "encoder.layer.": "blocks.",
        "model.layer.": "blocks.",
        "layers.": "blocks.",
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
        "attention.o_proj": "attn.proj",
        "layer_scale1.lambda1": "ls1.gamma",
        "layer_scale2.lambda1": "ls2.gamma",
        "layernorm.": "norm.",
    }
    for name in list(state):
        if "q_proj." in name:
            parts = [name.replace("q_proj", f"{part}_proj") for part in "qkv"]
            # DINOv3 has a bias of keys that it masks.
            tensors = [state.pop(part, torch.full((WIDTH,), 7.0)) for part in parts]
            state[name.replace("attention.q_proj", "attn.qkv")] = torch.cat(tensors)
            if version == "dinov3_vit" and name.endswith("bias"):
                mask = torch.ones(3 * WIDTH)
                mask[WIDTH : 2 * WIDTH] = 0
                state[name.replace("attention.q_proj.bias", "attn.qkv.bias_mask")] = mask
        if version == "dinov2" and "gate_proj." in name:
            halves = [state.pop(name), state.pop(name.replace("gate", "up"))]
            state[name.replace("gate_proj", "w12")] = torch.cat(halves)
    gated = any("gate_proj" in name for name in state)
    places |= {"gate_proj": "w1", "up_proj": "w2" if gated else "fc1", "down_proj": "w3" if gated else "fc2"}
    places |= {"down_proj": "w3"} if any("w12" in name for name in state) else {}
    for name, tensor in state.items():
        for old, new in places.items():
            name = name.replace(old, new)
        meta[name] = tensor
    if version == "dinov3_vit":
        meta["rope_embed.periods"] = 100 ** (torch.arange(16) / 16)
    return meta


def in_chunks(state):
    """DINOv2's names in a training with chunks of blocks: two here, of one block each."""
    places = {"blocks.0.": "blocks.0.0.", "blocks.1.": "blocks.1.1."}
    return {places.get(name[:9], name[:9]) + name[9:]: tensor for name, tensor in state.items()}


LAYOUTS = {
    "huggingface": lambda model: model.state_dict(),
    "huggingface, as published": as_published,
    "meta": as_meta,
    "meta, in chunks": lambda model: in_chunks(as_meta(model)),
    "meta, of a training": lambda model: {
        "teacher": {f"backbone.{name}": t for name, t in as_meta(model).items()}
        | {"dino_head.mlp.0.bias": torch.ones(3)}
    },
}


def write(content, folder):
    """A file of torch for what has levels, and of safetensors else."""
    if all(isinstance(value, torch.Tensor) for value in content.values()):
        safetensors.torch.save_file(
            {name: tensor.clone() for name, tensor in content.items()}, folder / "model.safetensors"
        )
        return folder / "model.safetensors"
    torch.save(content, folder / "model.pth")
    return folder / "model.pth"


@torch.no_grad()
def oracle(model, size, features):
    """Images, and what transformers makes of them."""
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    extra = {"interpolate_pos_encoding": True} if model.config.model_type == "vit" else {}
    tokens = model(images, **extra).last_hidden_state
    patches = tokens[:, 1 + getattr(model.config, "num_register_tokens", 0) :]
    return images, {
        "cls": tokens[:, 0],
        "mean": patches.mean(dim=1),
        "cls+mean": torch.cat([tokens[:, 0], patches.mean(dim=1)], dim=1),
    }[features]


@torch.no_grad()
def check(file, model, size, features=None, tolerance=1e-5, **options):
    """Features equal to those of transformers, and every tensor of the file accounted for."""
    weights = read_weights(file, image_size=size, features=features, **options)
    backbone, _ = build_backbone(weights.architecture)
    backbone.load_state_dict(weights.state)
    images, expected = oracle(model, size, features or "cls")
    assert torch.allclose(backbone.eval()(images), expected, atol=tolerance, rtol=0)
    return weights


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("registers", "gated"), [(False, False), (True, False), (False, True)])
def test_dinov2(tmp_path, monkeypatch, layout, registers, gated):
    if gated:
        monkeypatch.setitem(VARIANTS, "vit_tiny_patch14_dinov2", ("vit_giant_patch14_dinov2", NARROW))
    model = dinov2(registers, gated)
    weights = check(write(LAYOUTS[layout](model), tmp_path), model, 70, "cls+mean")
    assert weights.format == f"dinov2-{layout.partition(',')[0]}"
    assert weights.architecture.name == f"timm:vit_tiny_patch14{'_reg4' if registers else ''}_dinov2"
    assert weights.left_out["mask_token"] == "mask token"


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if "chunks" not in layout])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("biases", [False, True])
def test_dinov3(tmp_path, monkeypatch, layout, gated, biases):
    if gated:
        name = f"vit_tiny_patch16_dinov3{'_qkvb' if biases else ''}"
        monkeypatch.setitem(VARIANTS, name, (name.replace("tiny", "small_plus"), NARROW))
    model = dinov3(gated, biases)
    weights = check(write(LAYOUTS[layout](model), tmp_path), model, 64, "cls+mean")
    assert weights.format == f"dinov3-{layout.partition(',')[0]}"
    assert weights.architecture.name == f"timm:vit_tiny_patch16_dinov3{'_qkvb' if biases else ''}"
    expected = {"mask token", *([] if biases else ["biases that are all 0"])}
    if layout.startswith("meta"):
        expected |= {"mask of biases", "periods of positions, which the network computes"}
    assert {kind for name, kind in weights.left_out.items() if not name.startswith("dino_head")} == expected


@pytest.mark.parametrize("features", ["cls", "mean", "cls+mean"])
@pytest.mark.parametrize("make", [dinov3, plain])
def test_features(tmp_path, make, features):
    model = make()
    weights = check(write(model.state_dict(), tmp_path), model, 64, features)
    assert weights.architecture.features == features


@pytest.mark.parametrize("size", [28, 56, 98])
@pytest.mark.parametrize("registers", [False, True])
def test_other_image_sizes_of_dinov2_as_transformers_interpolates_positions(tmp_path, size, registers):
    model = dinov2(registers)
    check(write(as_meta(model), tmp_path), model, size)


@pytest.mark.parametrize("size", [32, 96])
@pytest.mark.parametrize("make", [dinov3, plain])
def test_other_image_sizes(tmp_path, size, make):
    model = make()
    check(write(model.state_dict(), tmp_path), model, size)


def test_a_backbone_takes_images_of_another_size_later(tmp_path):
    model = dinov2(registers=True)
    weights = read_weights(write(model.state_dict(), tmp_path), image_size=70)
    backbone, _ = build_backbone(weights.architecture)
    backbone.load_state_dict(weights.state)
    other = weights.architecture._replace(image_size=42, features="mean")
    resized, size = with_architecture(backbone, weights.architecture, other)
    images, expected = oracle(model, 42, "mean")
    with torch.no_grad():
        assert torch.allclose(resized.eval()(images), expected, atol=1e-5)
    assert size == WIDTH


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch14_reg4_dinov2", "vit_tiny_patch16_dinov3_qkvb", "vit_tiny_patch16_224"]
)
def test_the_layout_of_timm(tmp_path, name):
    real, sizes = VARIANTS[name]
    network = randomised(timm.create_model(real, **sizes))
    weights = read_weights(write(network.state_dict(), tmp_path), features="cls")
    assert weights.architecture.name == f"timm:{name}"
    assert weights.format.endswith("-timm")
    assert set(weights.state) | set(weights.left_out) == set(network.state_dict())
    assert set(weights.left_out.values()) <= {"classifier or projection head"}


@pytest.mark.parametrize("pretraining", [False, True])
def test_mae(tmp_path, pretraining):
    model = plain()
    encoder = as_meta(model)
    decoder = {"mask_token": torch.ones(1, 1, 8), "decoder_embed.weight": torch.ones(8, 8)} if pretraining else {}
    weights = check(write({"model": encoder | decoder, "epoch": 7}, tmp_path), model, 64)
    assert weights.format == ("mae-meta" if pretraining else "vit-timm")
    assert set(weights.left_out) == {*decoder, "epoch"}


def test_mae_of_hugging_face(tmp_path):
    model = plain()
    whole = transformers.ViTMAEForPreTraining(
        transformers.ViTMAEConfig(**SIZES, **PERCEPTRON, image_size=64, patch_size=16)
    )
    whole.vit.load_state_dict(model.state_dict())
    weights = check(write(whole.state_dict(), tmp_path), model, 64)
    assert set(weights.left_out.values()) == {"decoder"}


def test_moco_v3(tmp_path, monkeypatch):
    """Its ViT-S has twice the heads of others, which its weights do not show."""
    sizes = {"hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536}
    monkeypatch.setitem(
        VARIANTS, "vit_small_patch16_224_mocov3", ("vit_small_patch16_224", {"num_heads": 12, "depth": 2})
    )
    model = plain(**sizes)
    body = as_meta(model)
    state = {f"module.base_encoder.{name}": tensor for name, tensor in body.items()}
    state |= {f"module.momentum_encoder.{name}": torch.zeros_like(tensor) for name, tensor in body.items()}
    state |= {"module.base_encoder.head.0.weight": torch.ones(4, 384), "module.predictor.0.weight": torch.ones(4, 4)}
    weights = check(write({"state_dict": state, "arch": "vit_small"}, tmp_path), model, 64)
    assert (weights.format, weights.architecture.name) == ("moco-v3", "timm:vit_small_patch16_224_mocov3")
    assert weights.left_out["predictor.0.weight"] == "head"
    assert weights.left_out["momentum_encoder.pos_embed"] == "key encoder"


def test_the_default_size_is_rounded_up_to_whole_patches(tmp_path):
    file = write(dinov2().state_dict(), tmp_path)
    assert read_weights(file, default_size=64).architecture.image_size == 70
    assert read_weights(file).architecture.image_size == 224


@pytest.mark.parametrize("arch", ["timm:vit_tiny_patch16_224", "timm:vit_small_patch14_dinov2"])
def test_patches_or_a_width_that_do_not_fit_are_both_named(tmp_path, arch):
    with pytest.raises(HptError) as caught:
        read_weights(write(dinov2().state_dict(), tmp_path), arch)
    patch, width = (16, 192) if "224" in arch else (14, 384)
    assert str(caught.value) == (
        f"weights: {tmp_path}/model.safetensors: these weights have patches of 14 pixels and a width of 192, and "
        f"{arch} has patches of {patch} pixels and a width of {width}; use timm:vit_tiny_patch14_dinov2, or leave arch "
        "out"
    )


def test_unknown_sizes_ask_for_the_network(tmp_path):
    with pytest.raises(HptError, match="does not tell its network"):
        read_weights(write(dinov2(hidden_size=96).state_dict(), tmp_path))


def test_other_rotary_positions_are_not_taken_for_those_of_dinov3(tmp_path):
    state = as_meta(dinov3())
    state["rope_embed.periods"] = 10_000 ** (torch.arange(16) / 16)
    with pytest.raises(HptError, match="does not tell its network"):
        read_weights(write(state, tmp_path))


def test_a_missing_tensor_is_named(tmp_path):
    state = as_meta(dinov2())
    del state["blocks.1.norm2.bias"]
    with pytest.raises(HptError, match=r"1 missing \(blocks\.1\.norm2\.bias\)"):
        read_weights(write(state, tmp_path))


@pytest.mark.parametrize(
    ("arch", "features", "problem"),
    [
        ("timm:resnet18", "cls", "is not a vision transformer"),
        ("resnet18", "mean", "gives no features but its own"),
        ("vit_b_16", "mean", "gives no features but its own"),
        ("timm:vit_base_patch16_gap_224", "cls", "has no class token; use mean"),
    ],
)
def test_features_that_a_network_does_not_have(arch, features, problem):
    with pytest.raises(HptError, match=f"^features: {arch} {problem}"):
        build_backbone(Architecture(arch, 32, features=features))


@pytest.mark.parametrize(
    ("name", "place"), [("dinov3_vits16_pretrain_lvd1689m.pth", "accept its licence"), ("dinov2_vits14", "github.com")]
)
def test_weights_that_are_not_here_are_not_downloaded(tmp_path, name, place):
    with pytest.raises(HptError, match=f"is not a file here, and nothing is downloaded; .*{place}"):
        read_weights(tmp_path / name)


@pytest.mark.parametrize("text", ["<!doctype html><html>Forbidden", "version https://git-lfs.github.com/spec/v1"])
def test_what_a_refused_download_leaves(tmp_path, text):
    file = tmp_path / "dinov3_vitb16.pth"
    file.write_text(text)
    with pytest.raises(HptError, match=r"dinov3_vitb16\.pth is a text, .* accept its licence"):
        read_weights(file)


@pytest.mark.slow
@pytest.mark.parametrize("version", ["dinov2", "dinov2 with registers", "dinov3"])
@pytest.mark.parametrize(("size", "width", "heads"), [("small", 384, 6), ("base", 768, 12)])
def test_real_sizes(tmp_path, version, size, width, heads):
    sizes = {"hidden_size": width, "num_attention_heads": heads, "num_hidden_layers": 12}
    model = (
        dinov3(**sizes, intermediate_size=4 * width)
        if version == "dinov3"
        else dinov2("registers" in version, image_size=518, **sizes)
    )
    weights = check(write(model.state_dict(), tmp_path), model, 112)
    assert f"vit_{size}_" in weights.architecture.name
