"""Networks that take images of another size for a call."""

import copy

import pytest
import torch
from torch import nn

from hpt_mlflow.models.architecture import Architecture
from hpt_mlflow.models.backbone import build_backbone, with_architecture
from hpt_mlflow.models.positions import call_at_size, local_side

NETWORKS = ["timm:vit_tiny_patch16_224", "timm:vit_small_patch14_reg4_dinov2", "vit_b_16", "resnet18"]


def built(name, size):
    network, _ = build_backbone(Architecture(name, size))
    return network.eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_a_call_at_another_size_is_that_of_a_network_which_was_rebuilt_for_it(name):
    size, other = (112, 42) if "14" in name else (64, 32)
    network = built(name, size)
    before = copy.deepcopy(network.state_dict())
    rebuilt, _ = with_architecture(network, Architecture(name, size), Architecture(name, other))
    images, usual = torch.randn(2, 3, other, other), torch.randn(2, 3, size, size)
    with torch.no_grad():
        as_before = network(usual)
        assert torch.equal(call_at_size(network, images, size), rebuilt.eval()(images))
        assert torch.equal(call_at_size(nn.Sequential(network, nn.Flatten()), images, size), rebuilt(images))
        assert torch.equal(call_at_size(network, usual, size), as_before)
        # It is as it was afterwards.
        assert torch.equal(network(usual), as_before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_position_embeddings_learn_from_images_of_another_size():
    network = built("timm:vit_tiny_patch16_224", 64)
    call_at_size(network, torch.randn(2, 3, 32, 32), 64).square().sum().backward()
    assert network.pos_embed.grad.abs().sum(dim=-1).min() > 0


def test_a_network_of_one_size_is_as_before_after_a_call_that_fails():
    network = built("timm:beit_base_patch16_224", 64)
    with pytest.raises(RuntimeError):
        call_at_size(network, torch.randn(1, 3, 32, 32), 64)
    with torch.no_grad(), pytest.raises(AssertionError):
        network(torch.randn(1, 3, 32, 32))
    assert network.patch_embed.strict_img_size


@pytest.mark.parametrize(
    ("name", "size", "side"),
    [
        ("resnet50", 224, 96),
        ("resnet18", 32, 14),
        ("timm:vit_small_patch16_224", 224, 96),
        ("timm:vit_small_patch14_dinov2", 224, 98),
        ("vit_b_16", 32, 16),
        ("timm:vit_tiny_patch16_224", 16, 16),
    ],
)
def test_small_views_have_whole_patches(name, size, side):
    assert local_side(Architecture(name, size)) == side
