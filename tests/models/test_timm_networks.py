"""Networks of timm as they are built here."""

import copy
import pickle

import pytest
import timm
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hpt_mlflow.errors import HptError
from hpt_mlflow.models.architecture import Architecture
from hpt_mlflow.models.backbone import build_backbone, with_architecture

DINOV3 = "timm:vit_small_patch16_dinov3"


class OnProcessor(TorchDispatchMode):
    """Notes operations that give a tensor on the processor."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.device.type == "cpu":
            self.names.append(str(operation))
        return result


def test_positions_of_dinov3_are_computed_once_for_each_size():
    network = build_backbone(Architecture(DINOV3, 32))[0].to("meta")
    for size in (32, 48):
        network(torch.zeros(1, 3, size, size, device="meta"))
    with OnProcessor() as seen:
        for size in (32, 48):
            network(torch.zeros(1, 3, size, size, device="meta"))
    assert seen.names == []


def test_kept_positions_are_those_of_timm():
    network = build_backbone(Architecture(DINOV3, 32))[0].eval()
    plain = timm.create_model(DINOV3.removeprefix("timm:"), pretrained=False, num_classes=0).eval()
    plain.load_state_dict(network.state_dict())
    for size in (32, 48, 32):
        images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(size))
        with torch.no_grad():
            assert torch.equal(network(images), plain(images))


def test_positions_that_were_computed_for_features_can_be_trained_with():
    network = build_backbone(Architecture(DINOV3, 32))[0]
    with torch.inference_mode():
        network.eval()(torch.zeros(2, 3, 32, 32))
    for trained in (network, copy.deepcopy(network)):
        trained.train()(torch.zeros(2, 3, 32, 32)).sum().backward()
        assert trained.patch_embed.proj.weight.grad is not None


def test_a_network_with_kept_positions_can_be_pickled():
    network = build_backbone(Architecture(DINOV3, 32))[0].eval()
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = network(images)
        assert torch.equal(pickle.loads(pickle.dumps(network))(images), expected)  # noqa: S301


def test_a_network_with_other_layers_for_other_features_is_refused():
    old = Architecture("timm:eva02_tiny_patch14_224", 28)
    backbone, _ = build_backbone(old)
    with pytest.raises(HptError, match="^features: timm:eva02_tiny_patch14_224 has other layers") as caught:
        with_architecture(backbone, old, Architecture(old.name, 28, features="cls"))
    assert "\n" not in str(caught.value)
