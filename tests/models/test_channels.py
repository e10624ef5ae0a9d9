import pytest
import torch
from timm.models import adapt_input_conv
from torch import nn

from hpt_mlflow.errors import HptError
from hpt_mlflow.models.architecture import Architecture
from hpt_mlflow.models.backbone import build_backbone
from hpt_mlflow.models.channels import widen

NETWORKS = ["resnet18", "shufflenet_v2_x0_5", "densenet121", "convnext_tiny", "vit_b_16", "timm:resnet10t"]


@pytest.mark.parametrize("channels", [1, 2, 4, 13])
def test_a_network_for_rgb_is_widened_by_the_rule_of_timm(channels):
    backbone, _ = build_backbone(Architecture("resnet18", 64))
    expected = adapt_input_conv(channels, backbone.conv1.weight.detach())
    widen(backbone, channels, "resnet18")
    torch.testing.assert_close(backbone.conv1.weight.detach(), expected)
    assert backbone(torch.zeros(2, channels, 64, 64)).shape == (2, 512)


def test_equal_channels_give_what_equal_colours_gave():
    backbone, _ = build_backbone(Architecture("resnet18", 64))
    grey = torch.rand(2, 1, 64, 64)
    with torch.no_grad():
        before = backbone.eval()(grey.expand(-1, 3, -1, -1))
        for channels in (1, 6):
            wide, _ = build_backbone(Architecture("resnet18", 64))
            widen(wide, channels, "resnet18")
            torch.testing.assert_close(wide.eval()(grey.expand(-1, channels, -1, -1)), before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_new_network_takes_any_channels(name):
    size = 224 if name == "vit_b_16" else 64
    backbone, features = build_backbone(Architecture(name, size, channels=5))
    with torch.no_grad():
        assert backbone.eval()(torch.rand(2, 5, size, size)).flatten(1).shape == (2, features)


def test_new_weights_are_random_and_seeded_and_no_copies_of_each_other():
    architecture = Architecture("resnet18", 64, channels=6)
    weight = build_backbone(architecture, 1)[0].conv1.weight.detach()
    torch.testing.assert_close(weight, build_backbone(architecture, 1)[0].conv1.weight, rtol=0, atol=0)
    assert not torch.equal(weight[:, :3], weight[:, 3:])
    # Of twice the inputs, each has half the variance.
    narrow = build_backbone(Architecture("resnet18", 64), 1)[0].conv1.weight.detach()
    assert float(weight.std() / narrow.std()) == pytest.approx(0.5**0.5, rel=0.05)


def test_a_network_that_begins_otherwise_is_refused():
    with pytest.raises(HptError, match="does not begin with a convolution of red, green and blue"):
        widen(nn.Sequential(nn.Conv2d(4, 8, 3)), 5, "mine")
