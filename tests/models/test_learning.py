"""What each update lets learn, on convolutional networks and transformers of torchvision and timm."""

import copy
from functools import cache

import peft
import pytest
import torch
from torch import nn

from hpt_mlflow.errors import HptError
from hpt_mlflow.models.architecture import Architecture
from hpt_mlflow.models.backbone import build_backbone
from hpt_mlflow.models.learning import block_names, check_update, depths, learning_share, let_learn
from hpt_mlflow.models.lora import merged
from hpt_mlflow.models.timm_networks import VARIANTS
from hpt_mlflow.models.update import parse_update

VIT = "timm:vit_tiny_patch16_224"
DINOV3 = "timm:vit_tiny_patch16_dinov3_qkvb"


@pytest.fixture(autouse=True)
def shallow(monkeypatch):
    """Transformers of four blocks."""
    for arch in (VIT, DINOV3):
        name = arch.removeprefix("timm:")
        monkeypatch.setitem(VARIANTS, name, (name, {"depth": 4}))


@cache
def large():
    """Twelve wide blocks, which take a second to fill with numbers."""
    return build_backbone(Architecture("vit_b_16", 32))[0]


def backbone_of(arch, size=32):
    if (arch, size) == ("vit_b_16", 32):
        return copy.deepcopy(large())
    return build_backbone(Architecture(arch, size))[0]


def learning(backbone):
    return {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}


def randomise_changes(network):
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("lora_up"):
                parameter.normal_(std=0.05)


@pytest.mark.parametrize(
    ("arch", "count", "last"),
    [
        ("timm:vit_small_patch16_224", 12, "blocks.11"),
        ("timm:vit_small_patch16_dinov3", 12, "blocks.11"),
        ("timm:convnext_tiny", 18, "stages.3.blocks.2"),
        ("timm:tf_efficientnet_lite0", 16, "blocks.6.0"),
        ("timm:resnet18", 8, "layer4.1"),
        ("timm:swin_tiny_patch4_window7_224", 12, "layers.3.blocks.1"),
        ("resnet50", 16, "layer4.2"),
        ("vit_b_16", 12, "encoder.layers.encoder_layer_11"),
        ("shufflenet_v2_x0_5", 16, "stage4.3"),
    ],
)
def test_blocks(arch, count, last):
    names = block_names(backbone_of(arch, 224 if "swin" in arch else 32))
    assert (len(names), names[-1]) == (count, last)


def dinov2_exponent(name, blocks):
    """As DINOv2's `get_vit_lr_decay_rate` counts."""
    if name.startswith("blocks."):
        return blocks - int(name.split(".")[1])
    return (
        blocks + 1 if name.split(".")[0] in ("pos_embed", "patch_embed", "cls_token", "reg_token", "mask_token") else 0
    )


@pytest.mark.parametrize("arch", [VIT, DINOV3])
def test_depths_are_those_of_dinov2_on_a_transformer(arch):
    backbone = backbone_of(arch)
    expected = {name: dinov2_exponent(name, 4) for name, _ in backbone.named_parameters()}
    assert depths(backbone) == expected
    assert set(expected.values()) == {0, 1, 2, 3, 4, 5}


def test_depths_of_a_network_of_stages():
    found = depths(backbone_of("timm:convnext_tiny"))
    assert found["stem.0.weight"] == 19
    assert found["stages.0.blocks.0.gamma"] == 18
    # What is between two blocks is as deep as the later one.
    assert found["stages.1.downsample.0.weight"] == found["stages.1.blocks.0.gamma"] == 15
    assert found["stages.3.blocks.2.gamma"] == 1
    assert found["head.norm.weight"] == 0


def test_norm_is_hpt_bn_on_a_network_with_batch_norm():
    first, second = backbone_of("resnet18"), backbone_of("resnet18")
    let_learn(first, parse_update("norm"))
    let_learn(second, parse_update("bn"))
    assert learning(first) == learning(second) != set()


@pytest.mark.parametrize(("arch", "layers"), [(VIT, 9), (DINOV3, 9), ("vit_b_16", 25), ("timm:convnext_tiny", 23)])
def test_norm_is_all_layer_norms_elsewhere(arch, layers):
    backbone = backbone_of(arch)
    let_learn(backbone, parse_update("norm"))
    expected = {
        f"{name}.{parameter}"
        for name, layer in backbone.named_modules()
        if isinstance(layer, nn.LayerNorm)
        for parameter in ("weight", "bias")
    }
    assert learning(backbone) == expected
    assert len(expected) == 2 * layers


def test_last_lets_the_last_blocks_learn_and_what_follows():
    backbone = backbone_of(VIT)
    let_learn(backbone, parse_update("last:2"))
    inside = {name for name, _ in backbone.named_parameters() if name.startswith(("blocks.2.", "blocks.3.", "norm."))}
    assert learning(backbone) == inside


@pytest.mark.parametrize("arch", [VIT, DINOV3])
def test_lora_learns_two_matrices_for_each_layer_of_attention(arch):
    backbone = backbone_of(arch)
    let_learn(backbone, parse_update("lora", rank=3))
    changes = {
        f"blocks.{i}.attn.{layer}.lora_{way}" for i in range(4) for layer in ("qkv", "proj") for way in ("down", "up")
    }
    assert learning(backbone) == changes
    assert {tuple(backbone.get_parameter(name).shape) for name in changes} == {(3, 192), (576, 3), (192, 3)}


def test_explora_lets_the_last_block_and_all_normalisation_learn_and_changes_the_others():
    backbone = backbone_of(VIT)
    let_learn(backbone, parse_update("explora"))
    names = learning(backbone)
    assert {name for name in names if name.startswith("blocks.3.")} == {
        f"blocks.3.{name}" for name, _ in backbone.blocks[3].named_parameters()
    }
    assert not any("lora" in name for name in names if name.startswith("blocks.3."))
    rest = {name.split(".", 2)[2] for name in names if name.startswith("blocks.0.")}
    norms = {f"norm{i}.{name}" for i in (1, 2) for name in ("weight", "bias")}
    assert rest == norms | {f"attn.{layer}.lora_{way}" for layer in ("qkv", "proj") for way in ("down", "up")}
    assert {"norm.weight", "norm.bias"} <= names


def test_low_rank_changes_start_at_nothing_and_merge_into_the_weights():
    backbone = backbone_of(DINOV3).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        # Layer scale starts so small that no change would show.
        for name, parameter in backbone.named_parameters():
            if "gamma" in name:
                parameter.fill_(0.5)
        before = backbone(images)
        original = copy.deepcopy(backbone)
        let_learn(backbone, parse_update("lora"))
        assert torch.allclose(backbone(images), before, atol=1e-6)
        randomise_changes(backbone)
        changed = backbone(images)
        assert not torch.allclose(changed, before, atol=1e-2)
        state = merged(backbone.state_dict())
        assert state.keys() == original.state_dict().keys()
        original.load_state_dict(state)
        assert torch.allclose(original(images), changed, atol=1e-5)
    touched = {name for name, tensor in state.items() if not torch.equal(tensor, backbone.state_dict()[name])}
    assert touched == {f"blocks.{i}.attn.{layer}.weight" for i in range(4) for layer in ("qkv", "proj")}


def test_convolutions_are_changed_as_well():
    backbone = backbone_of("timm:tf_efficientnet_lite0").eval()
    let_learn(backbone, parse_update("lora", rank=2))
    assert {name.split(".")[-2] for name in learning(backbone)} == {"conv_pw", "conv_pwl", "conv_head"}
    randomise_changes(backbone)
    plain = backbone_of("timm:tf_efficientnet_lite0").eval()
    plain.load_state_dict(merged(backbone.state_dict()))
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(plain(images), backbone(images), atol=1e-4)


def test_lora_is_that_of_peft():
    ours, theirs = backbone_of(VIT).eval(), backbone_of(VIT).eval()
    let_learn(ours, parse_update("lora", rank=4, targets="attn.qkv,mlp.fc1"))
    randomise_changes(ours)
    theirs = peft.get_peft_model(
        theirs, peft.LoraConfig(r=4, lora_alpha=4, lora_dropout=0.0, target_modules=r".*\.(attn\.qkv|mlp\.fc1)")
    ).eval()
    state = theirs.state_dict()
    for name, tensor in ours.state_dict().items():
        place, _, kind = name.rpartition(".")
        if kind.startswith("lora_"):
            state[f"base_model.model.{place}.lora_{'A' if kind == 'lora_down' else 'B'}.default.weight"] = tensor
    theirs.load_state_dict(state)
    images = torch.randn(3, 3, 32, 32)
    for network in (ours, theirs):
        network(images).square().sum().backward()
    assert torch.allclose(ours(images), theirs(images), atol=1e-6)
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters() if parameter.requires_grad}
    assert len(gradients) == len(learning(ours)) == 16
    for name in learning(ours):
        place, _, kind = name.rpartition(".")
        other = gradients[f"base_model.model.{place}.lora_{'A' if kind == 'lora_down' else 'B'}.default.weight"]
        assert torch.allclose(ours.get_parameter(name).grad, other, rtol=1e-4, atol=1e-4)
    assert torch.allclose(
        merged(ours.state_dict())["blocks.0.mlp.fc1.weight"],
        theirs.merge_and_unload().state_dict()["blocks.0.mlp.fc1.weight"],
        atol=1e-6,
    )


@pytest.mark.parametrize(
    ("arch", "most"), [("timm:vit_small_patch16_224", 0.02), ("timm:tf_efficientnet_lite0", 0.1), ("resnet50", 0.1)]
)
def test_lora_learns_a_small_share(arch, most):
    backbone = backbone_of(arch)
    let_learn(backbone, parse_update("lora"))
    assert 0 < learning_share(backbone) < most


@pytest.mark.parametrize(
    ("arch", "update", "options", "message"),
    [
        (VIT, "bn", {}, f"update: {VIT} has no BatchNorm layers; use norm"),
        (VIT, "bn-stats", {}, f"update: {VIT} has no BatchNorm layers; use norm"),
        ("alexnet", "bn", {}, "update: alexnet has no BatchNorm layers; use all"),
        ("alexnet", "norm", {}, "update: alexnet has no normalisation layers; use all"),
        (VIT, "last:5", {}, f"update: {VIT} has 4 blocks, not 5; use a number up to 4"),
        (
            VIT,
            "lora",
            {"targets": "qqq"},
            f"lora_targets: qqq matches no linear layer and no convolution of {VIT} that may get a low-rank change; "
            "name ends of layers, such as attn.qkv, attn.proj, mlp.fc1, mlp.fc2",
        ),
        (VIT, "lora", {"targets": "attn.qkv,mlp.w12"}, "lora_targets: mlp.w12 matches no linear layer"),
        ("vit_b_16", "lora", {"targets": "out_proj"}, "lora_targets: out_proj matches no linear layer"),
    ],
)
def test_what_a_network_does_not_have_is_refused_in_one_line(arch, update, options, message):
    size = 64 if arch == "alexnet" else 32
    with pytest.raises(HptError) as caught:
        check_update(backbone_of(arch, size), parse_update(update, **options), Architecture(arch, size))
    assert str(caught.value).startswith(message)


def test_a_layer_whose_weights_are_used_without_calling_it_is_refused():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(3, 2)

        def forward(self, images):
            return nn.functional.linear(images.mean(dim=(2, 3)), self.inner.weight)

    with pytest.raises(HptError, match="^lora_targets: odd does not call inner as a layer"):
        check_update(Odd(), parse_update("lora"), Architecture("odd", 8))


@pytest.mark.parametrize("arch", [VIT, DINOV3, "vit_b_16", "timm:tf_efficientnet_lite0", "resnet18"])
@pytest.mark.parametrize("update", ["all", "norm", "last:1", "lora", "explora:2"])
def test_every_update_fits_every_kind_of_network(arch, update):
    if arch == "resnet18" and "lora" in update:
        pytest.skip("its 1 x 1 convolutions are those of shortcuts alone")
    backbone = backbone_of(arch)
    check_update(backbone, parse_update(update), Architecture(arch, 32))
    let_learn(backbone, parse_update(update))
    backbone(torch.randn(2, 3, 32, 32)).square().sum().backward()
    for name, parameter in backbone.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


@pytest.mark.parametrize("text", ["", "last", "last:0", "last:-1", "last:x", "lora:2", "head", "explora:0", "all "])
def test_unknown_updates_are_refused(text):
    with pytest.raises(HptError, match="^update: .* is unknown; use all, norm, last:N"):
        parse_update(text)


@pytest.mark.parametrize(("name", "value"), [("rank", 4), ("targets", "qkv")])
def test_rank_and_targets_need_low_rank_changes(name, value):
    with pytest.raises(HptError, match=f"^lora_{name}: update=norm has no low-rank changes"):
        parse_update("norm", **{name: value})
