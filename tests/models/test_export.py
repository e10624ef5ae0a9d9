"""Each format is read back by its own library, and gives the same features; detectron2's by its layout."""

import json
import os
import sys

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from hpt_mlflow.errors import HptError
from hpt_mlflow.models.architecture import Architecture
from hpt_mlflow.models.backbone import build_backbone
from hpt_mlflow.models.checkpoint import BackboneCard
from hpt_mlflow.models.export import export_backbone
from hpt_mlflow.models.foreign import read_weights
from hpt_mlflow.models.timm_networks import VARIANTS

SIZE = 64


def made(arch, image_size=SIZE, small_stem=False):
    """A backbone with statistics as after some training, its card, some images and their features."""
    torch.manual_seed(0)
    backbone, size = build_backbone(Architecture(arch, image_size, small_stem))
    with torch.no_grad():
        for name, tensor in backbone.state_dict().items():
            if tensor.dim() == 1 and name.endswith(("running_mean", "running_var", "bias")):
                tensor.copy_(torch.rand_like(tensor) + 0.5)
    card = BackboneCard(
        Architecture(arch, image_size, small_stem), size, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), ("clipart", "noto"), 3
    )
    images = torch.randn(3, 3, image_size, image_size)
    with torch.no_grad():
        features = backbone.eval()(images).flatten(1)
    backbone.train()
    return backbone, card, images, features


@pytest.fixture(scope="module")
def resnet18():
    return made("resnet18")


@pytest.fixture(scope="module")
def resnet50():
    return made("resnet50")


def test_torchvision_reads_it_with_the_classifier_alone_missing(tmp_path, resnet18):
    backbone, card, images, features = resnet18
    export_backbone(backbone, card, "torchvision", tmp_path / "a.pth")
    network = torchvision.models.get_model("resnet18", weights=None)
    read = torch.load(tmp_path / "a.pth", weights_only=True)
    missing, unexpected = network.load_state_dict(read, strict=False)
    assert (missing, unexpected) == (["fc.weight", "fc.bias"], [])
    network.fc = nn.Identity()
    with torch.no_grad():
        assert torch.allclose(network.eval()(images), features, atol=1e-5)


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_timm_reads_a_resnet_of_torchvision(tmp_path, resnet50, ending):
    timm = pytest.importorskip("timm")
    backbone, card, images, features = resnet50
    export_backbone(backbone, card, "timm", tmp_path / f"a{ending}")
    network = timm.create_model(
        "resnet50", pretrained=False, num_classes=0, checkpoint_path=str(tmp_path / f"a{ending}")
    )
    with torch.no_grad():
        assert torch.allclose(network.eval()(images), features, atol=1e-4, rtol=1e-4)


def test_timm_reads_its_own_networks(tmp_path):
    timm = pytest.importorskip("timm")
    backbone, card, images, features = made("timm:mobilenetv3_small_050")
    export_backbone(backbone, card, "timm", tmp_path / "a.pth")
    network = timm.create_model("mobilenetv3_small_050", pretrained=False, num_classes=0)
    network.load_state_dict(torch.load(tmp_path / "a.pth", weights_only=True))
    with torch.no_grad():
        assert torch.allclose(network.eval()(images), features, atol=1e-5)


class Detectron2Bottleneck(nn.Module):
    """detectron2/modeling/backbone/resnet.py: BottleneckBlock with STRIDE_IN_1X1 False; a conv carries its norm."""

    def __init__(self, inputs, width, outputs, stride):
        super().__init__()
        self.conv1 = conv_norm(inputs, width, 1)
        self.conv2 = conv_norm(width, width, 3, stride)
        self.conv3 = conv_norm(width, outputs, 1)
        self.shortcut = conv_norm(inputs, outputs, 1, stride) if inputs != outputs else None

    def forward(self, x):
        out = apply(self.conv3, apply(self.conv2, apply(self.conv1, x).relu()).relu())
        return (out + (apply(self.shortcut, x) if self.shortcut is not None else x)).relu()


def conv_norm(inputs, outputs, kernel, stride=1):
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    conv.norm = nn.BatchNorm2d(outputs)
    return conv


def apply(conv, x):
    return conv.norm(conv(x))


class Detectron2ResNet50(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Module()
        self.stem.conv1 = conv_norm(3, 64, 7, 2)
        inputs = 64
        for number, count in zip((2, 3, 4, 5), (3, 4, 6, 3), strict=True):
            width = 64 * 2 ** (number - 2)
            blocks = []
            for block in range(count):
                stride = 2 if block == 0 and number > 2 else 1
                blocks.append(Detectron2Bottleneck(inputs, width, 4 * width, stride))
                inputs = 4 * width
            setattr(self, f"res{number}", nn.Sequential(*blocks))

    def forward(self, x):
        x = nn.functional.max_pool2d(apply(self.stem.conv1, x).relu(), 3, 2, 1)
        return self.res5(self.res4(self.res3(self.res2(x)))).mean((2, 3))


def test_detectron2_layout_gives_the_same_features(tmp_path, resnet50):
    backbone, card, images, features = resnet50
    export_backbone(backbone, card, "detectron2", tmp_path / "a.pth")
    # What DetectionCheckpointer does with a .pth file.
    content = torch.load(tmp_path / "a.pth", map_location="cpu", weights_only=True)
    assert set(content) == {"model", "__author__", "matching_heuristics"}
    assert content["matching_heuristics"] is True
    network = Detectron2ResNet50()
    network.load_state_dict(content["model"])
    with torch.no_grad():
        assert torch.allclose(network.eval()(images), features, atol=1e-4, rtol=1e-4)


def test_detectron2_layout_of_basic_blocks(tmp_path, resnet18):
    backbone, card, _, _ = resnet18
    export_backbone(backbone, card, "detectron2", tmp_path / "a.pth")
    names = set(torch.load(tmp_path / "a.pth", weights_only=True)["model"])
    assert len(names) == len(backbone.state_dict())
    assert {
        "stem.conv1.weight",
        "stem.conv1.norm.running_var",
        "res2.0.conv1.weight",
        "res2.1.conv2.norm.bias",
    } <= names
    assert {"res3.0.shortcut.weight", "res5.0.shortcut.norm.running_mean"} <= names


@pytest.mark.parametrize(
    ("arch", "small_stem"),
    [
        ("resnet18", True),
        pytest.param("timm:tf_efficientnet_lite0", False, marks=pytest.mark.slow),
        ("timm:vit_tiny_patch16_224", False),
        ("timm:vit_tiny_patch16_dinov3_qkvb", False),
    ],
)
def test_onnx_runs_on_any_number_of_images(tmp_path, monkeypatch, arch, small_stem):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    if arch.startswith("timm:"):
        pytest.importorskip("timm")
    if arch.startswith("timm:vit"):
        name = arch.removeprefix("timm:")
        monkeypatch.setitem(VARIANTS, name, (name, {"depth": 2}))
    backbone, card, images, features = made(arch, 32, small_stem)
    export_backbone(backbone, card, "onnx", tmp_path / "a.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["a.onnx"]
    session = runtime.InferenceSession(tmp_path / "a.onnx")
    for count in (1, 3):
        (embedding,) = session.run(["embedding"], {"images": images[:count].numpy()})
        assert embedding.dtype == np.float32
        assert np.allclose(embedding, features[:count].numpy(), atol=1e-3, rtol=1e-3)
    said = session.get_modelmeta().custom_metadata_map
    assert (json.loads(said["mean"]), json.loads(said["std"])) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    assert (said["image_size"], said["arch"], said["chain"]) == ("32", arch, "clipart > noto")
    assert backbone.training
    assert all(layer.training for layer in backbone.modules())


def test_what_is_written_can_be_read_again(tmp_path, resnet18):
    backbone, card, _, _ = resnet18
    for format, file in (("torchvision", "a.pth"), ("timm", "b.safetensors")):
        if format == "timm":
            pytest.importorskip("timm")
        export_backbone(backbone, card, format, tmp_path / file)
        weights = read_weights(tmp_path / file)
        assert all(torch.equal(weights.state[name], tensor) for name, tensor in backbone.state_dict().items())


@pytest.mark.parametrize(
    ("arch", "small_stem", "format", "file", "words"),
    [
        ("timm:resnet18", False, "torchvision", "a.pth", "torchvision has no timm:resnet18; use timm or onnx"),
        ("timm:resnet18", False, "detectron2", "a.pth", "detectron2 reads ResNets, not timm:resnet18"),
        ("shufflenet_v2_x0_5", False, "timm", "a.pth", "timm has no shufflenet_v2_x0_5"),
        ("shufflenet_v2_x0_5", False, "detectron2", "a.pth", "detectron2 reads ResNets, not shufflenet_v2_x0_5"),
        ("resnet18", True, "torchvision", "a.pth", "torchvision has no resnet18 with the stem"),
        ("resnet18", True, "timm", "a.pth", "timm has no resnet18 with the stem"),
        ("resnet18", True, "detectron2", "a.pth", "detectron2 has no resnet18 with the stem"),
        ("resnet18", False, "detectron2", "a.pkl", "let it end in .pth"),
        ("resnet18", False, "caffe", "a.pth", "'caffe' is unknown; use torchvision, timm, detectron2, onnx"),
        ("resnet18", False, "torchvision", "nowhere/a.pth", "cannot be written .No such file"),
        ("resnet18", False, "torchvision", ".", "is a folder"),
    ],
)
def test_what_a_format_cannot_hold_is_refused_in_one_line(tmp_path, arch, small_stem, format, file, words):
    if "timm" in (arch.partition(":")[0], format):
        pytest.importorskip("timm")
    backbone, size = build_backbone(Architecture(arch, 32, small_stem))
    card = BackboneCard(Architecture(arch, 32, small_stem), size, (0, 0, 0), (1, 1, 1))
    with pytest.raises(HptError, match=words) as caught:
        export_backbone(backbone, card, format, tmp_path / file)
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_without_onnx_the_extra_is_named(tmp_path, resnet18, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    backbone, card, _, _ = resnet18
    with pytest.raises(HptError, match=r'package onnxscript .*pip install "hpt_mlflow\[onnx\]"'):
        export_backbone(backbone, card, "onnx", tmp_path / "a.onnx")
