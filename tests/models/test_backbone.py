from __future__ import annotations

import pytest
import torch
from torch import nn

from hpt_mlflow.errors import HptError
from hpt_mlflow.models.architecture import Architecture
from hpt_mlflow.models.backbone import architectures, batch_norms, build_backbone, classifier_layers, try_image_size

FEATURE_SIZES = {
    ("resnet18", False): 512,
    ("resnet18", True): 512,
    ("vgg11", False): 4096,
    ("mobilenet_v3_small", False): 1024,
    ("shufflenet_v2_x0_5", False): 1024,
    ("squeezenet1_1", False): 512,
    ("densenet121", False): 1024,
    ("efficientnet_b0", False): 1280,
    ("convnext_tiny", False): 768,
    ("vit_b_16", False): 768,
    ("googlenet", False): 1024,
    ("regnet_y_400mf", False): 440,
}


@pytest.fixture(scope="module", params=FEATURE_SIZES, ids=lambda key: key[0] + ("-small-stem" if key[1] else ""))
def built(request):
    torch.manual_seed(0)
    arch, small_stem = request.param
    backbone, feature_size = build_backbone(Architecture(arch, 32, small_stem))
    return arch, backbone, feature_size, FEATURE_SIZES[request.param]


def test_feature_size_is_the_width_of_the_forward_pass(built):
    _, backbone, feature_size, expected = built
    backbone.eval()
    with torch.no_grad():
        features = backbone(torch.randn(2, 3, 32, 32)).flatten(1)
    backbone.train()
    assert features.shape == (2, feature_size)
    assert feature_size == expected


def test_no_layer_for_1000_classes_is_left(built):
    _, backbone, _, _ = built
    widths = [getattr(layer, "out_features", getattr(layer, "out_channels", None)) for layer in backbone.modules()]
    assert 1000 not in widths
    assert any(widths)


def test_head_has_no_dropout(built):
    _, backbone, _, _ = built
    # What a transformer has inside its encoder is no part of the head.
    dropouts = [
        name
        for name, layer in backbone.named_modules()
        if isinstance(layer, nn.Dropout) and not name.startswith("encoder.")
    ]
    assert dropouts == []


def test_backbone_comes_in_training_mode(built):
    _, backbone, _, _ = built
    assert all(layer.training for layer in backbone.modules())


def test_small_stem_keeps_the_resolution():
    backbone, _ = build_backbone(Architecture("resnet18", 16, small_stem=True))
    assert backbone.conv1(torch.zeros(1, 3, 16, 16)).shape == (1, 64, 16, 16)
    assert isinstance(backbone.maxpool, nn.Identity)


def test_same_seed_gives_same_weights():
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(build_backbone(Architecture("resnet18", 16, small_stem=True))[0].state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_unknown_name_suggests_a_close_one():
    with pytest.raises(HptError, match=r"^arch: .*'resnet81'; did you mean .*resnet18") as caught:
        build_backbone(Architecture("resnet81", 32))
    assert "\n" not in str(caught.value)


def test_name_unlike_any_other_suggests_common_ones():
    with pytest.raises(HptError, match=r"'qqqq'; try resnet18"):
        build_backbone(Architecture("qqqq", 32))


def test_networks_for_other_tasks_are_unknown():
    assert "resnet18" in architectures()
    assert "fcn_resnet50" not in architectures()
    with pytest.raises(HptError, match="no classification network"):
        build_backbone(Architecture("fcn_resnet50", 32))


def test_small_stem_is_only_for_resnets():
    with pytest.raises(HptError, match=r"small_stem: .*vgg11"):
        build_backbone(Architecture("vgg11", 32, small_stem=True))


@pytest.mark.parametrize(("arch", "size"), [("vit_b_16", 30), ("alexnet", 32)])
def test_impossible_image_size_is_refused_in_one_line(arch, size):
    with pytest.raises(HptError, match=f"^image_size: {arch} .* {size} pixels") as caught:
        build_backbone(Architecture(arch, size))
    assert "\n" not in str(caught.value)


def test_trying_a_size_keeps_mode_and_statistics():
    backbone, _ = build_backbone(Architecture("resnet18", 32))
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    assert try_image_size(backbone, Architecture("resnet18", 64)) == 512
    assert backbone.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())


def test_batch_norms_finds_every_kind():
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Sequential(nn.BatchNorm1d(2), nn.LayerNorm(2)), nn.GroupNorm(1, 3))
    assert batch_norms(network) == [network[0], network[1][0]]


@pytest.mark.parametrize(
    ("arch", "size", "expected"),
    [("timm:resnet18", 32, 512), ("timm:vit_tiny_patch16_224", 64, 192), ("timm:tf_efficientnet_lite0", 32, 1280)],
)
def test_networks_of_timm_give_pooled_features(arch, size, expected):
    pytest.importorskip("timm")
    backbone, feature_size = build_backbone(Architecture(arch, size))
    assert backbone.training
    with torch.no_grad():
        assert backbone.eval()(torch.zeros(2, 3, size, size)).shape == (2, expected) == (2, feature_size)


def test_batch_norms_of_timm_are_found():
    pytest.importorskip("timm")
    backbone, _ = build_backbone(Architecture("timm:tf_efficientnet_lite0", 32))
    assert type(batch_norms(backbone)[0]).__name__ == "BatchNormAct2d"
    assert len(batch_norms(backbone)) == 49


@pytest.mark.parametrize(
    ("arch", "words"),
    [
        ("timm:resnet81", "timm has no network 'resnet81'; did you mean .*timm:resnet18"),
        ("timm:", "timm has no network ''; try timm:resnet18"),
        ("timm:resnet50.a1_in1k", "names weights of timm; give only the network, timm:resnet50"),
        ("timm:hf-hub:some/where", "timm has no network"),
    ],
)
def test_unknown_networks_of_timm_are_refused_in_one_line(arch, words):
    pytest.importorskip("timm")
    with pytest.raises(HptError, match=f"^arch: .*{words}") as caught:
        build_backbone(Architecture(arch, 32))
    assert "\n" not in str(caught.value)


def test_small_stem_is_not_for_networks_of_timm():
    pytest.importorskip("timm")
    with pytest.raises(HptError, match="small_stem: only for torchvision's ResNets, not for timm:resnet18"):
        build_backbone(Architecture("timm:resnet18", 32, small_stem=True))


def test_size_that_a_network_of_timm_cannot_take():
    pytest.importorskip("timm")
    with pytest.raises(HptError, match="^image_size: timm:vit_tiny_patch16_224 cannot take images of 8 pixels"):
        build_backbone(Architecture("timm:vit_tiny_patch16_224", 8))


@pytest.mark.parametrize(
    ("arch", "layers"),
    [("resnet18", ("fc",)), ("vgg11", ("classifier.6",)), ("googlenet", ("fc", "aux1", "aux2")), ("swin_t", ("head",))],
)
def test_classifier_layers_are_what_the_backbone_lacks(arch, layers):
    assert classifier_layers(arch) == layers
