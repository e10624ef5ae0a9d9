import copy

import pytest
import torch
from torch import nn

from hpt_mlflow.models.architecture import Architecture
from hpt_mlflow.models.backbone import build_backbone, keep_statistics
from hpt_mlflow.models.batch_norm_in_parts import normalise_in_parts

SIZE = 32


def both(name, parts):
    """A network in training, and the same with BatchNorm over parts."""
    torch.manual_seed(0)
    network, _ = build_backbone(Architecture(name, SIZE))
    network = network.to(memory_format=torch.channels_last).train()
    in_parts = copy.deepcopy(network)
    normalise_in_parts(in_parts, parts)
    return network, in_parts


@torch.no_grad()
def part_by_part(network, images, parts):
    return torch.cat([network(part) for part in images.tensor_split(parts)])


@pytest.mark.parametrize("name", ["resnet18", "shufflenet_v2_x0_5", "timm:tf_efficientnet_lite0"])
def test_a_batch_as_a_whole_gives_what_its_parts_give(name):
    """In double precision: other layers may add up a larger batch in another order, and small parts magnify that."""
    network, in_parts = (one.double() for one in both(name, 4))
    images = torch.randn(16, 3, SIZE, SIZE, dtype=torch.float64)
    with torch.no_grad():
        got, expected = in_parts(images), part_by_part(network, images, 4)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(in_parts.state_dict(), network.state_dict(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("images", "parts"), [(10, 4), (7, 3), (8, 1)])
def test_parts_differ_by_one_image_at_most(images, parts):
    layer = nn.BatchNorm1d(5)
    in_parts = copy.deepcopy(layer)
    normalise_in_parts(in_parts, parts)
    batch = torch.randn(images, 5)
    assert torch.equal(in_parts(batch), part_by_part(layer, batch, parts))


@pytest.mark.parametrize("freeze", [nn.Module.eval, keep_statistics])
def test_kept_statistics_are_those_of_no_part(freeze):
    network, in_parts = both("resnet18", 4)
    images = torch.randn(8, 3, SIZE, SIZE)
    for one in (network, in_parts):
        freeze(one)
    with torch.no_grad():
        assert torch.equal(in_parts(images), network(images))


def test_a_copy_has_parts_too():
    layer = nn.BatchNorm1d(5)
    normalise_in_parts(layer, 2)
    batch = torch.randn(8, 5)
    assert torch.equal(copy.deepcopy(layer)(batch), layer(batch))
