"""ConvNeXts in the layouts of Meta, Hugging Face and timm, against the networks of transformers."""

import pytest
import safetensors.torch
import timm
import torch
import transformers

from hpt_mlflow.models.backbone import build_backbone
from hpt_mlflow.models.convnext_weights import V1
from hpt_mlflow.models.foreign import read_weights
from hpt_mlflow.models.timm_networks import VARIANTS

SIZES = {"hidden_sizes": [16, 32, 64, 128], "depths": [2, 2, 2, 2]}


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    """A ConvNeXt with the smallest width and depths."""
    monkeypatch.setitem(VARIANTS, "convnext_least", ("convnext_tiny", {"dims": [16, 32, 64, 128], "depths": [2] * 4}))
    monkeypatch.setitem(V1, ((2, 2, 2, 2), 16), "convnext_least")


def randomised(network):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return network.eval()


def convnext():
    return randomised(transformers.ConvNextModel(transformers.ConvNextConfig(**SIZES, layer_norm_eps=1e-6)))


def convnext_v2():
    sizes = {"hidden_sizes": [40, 80, 160, 320], "depths": [2, 2, 6, 2], "layer_norm_eps": 1e-6}
    return randomised(transformers.ConvNextV2Model(transformers.ConvNextV2Config(**sizes)))


def dinov3():
    return randomised(transformers.DINOv3ConvNextModel(transformers.DINOv3ConvNextConfig(**SIZES)))


def as_meta(model):
    """The names of facebookresearch/ConvNeXt."""
    places = {
        "embeddings.patch_embeddings.": "downsample_layers.0.0.",
        "embeddings.layernorm.": "downsample_layers.0.1.",
        "encoder.stages.": "stages.",
        ".layers.": ".",
        "layer_scale_parameter": "gamma",
        "grn.weight": "grn.gamma",
        "grn.bias": "grn.beta",
        "layernorm.": "norm.",
    }
    meta = {}
    for name, tensor in model.state_dict().items():
        for old, new in places.items():
            name = name.replace(old, new)
        stage = name.split(".")[1] if name.startswith("stages") else ""
        meta[name.replace(f"stages.{stage}.downsampling_layer.", f"downsample_layers.{stage}.")] = tensor
    return meta | {"head.weight": torch.ones(7, 3), "head.bias": torch.ones(7)}


@pytest.mark.parametrize(
    ("make", "layout"),
    [
        (convnext, "huggingface"),
        (convnext, "meta"),
        (convnext_v2, "huggingface"),
        (convnext_v2, "meta"),
        (dinov3, "huggingface"),
    ],
)
def test_features_are_those_of_transformers(tmp_path, layout, make):
    model = make()
    state = as_meta(model) if layout == "meta" else dict(model.state_dict())
    safetensors.torch.save_file({name: tensor.clone() for name, tensor in state.items()}, tmp_path / "a.safetensors")
    weights = read_weights(tmp_path / "a.safetensors", image_size=64)
    backbone, _ = build_backbone(weights.architecture)
    backbone.load_state_dict(weights.state)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(backbone.eval()(images), model(images).pooler_output, atol=1e-5)
    assert weights.format == f"convnext-{layout}"
    assert set(weights.left_out.values()) == ({"classifier or projection head"} if layout == "meta" else set())


def test_the_layout_of_timm(tmp_path):
    network = timm.create_model("convnextv2_atto")
    torch.save(network.state_dict(), tmp_path / "a.pth")
    weights = read_weights(tmp_path / "a.pth")
    assert (weights.format, weights.architecture.name) == ("convnext-timm", "timm:convnextv2_atto")
    assert set(weights.left_out) == {"head.fc.weight", "head.fc.bias"}
