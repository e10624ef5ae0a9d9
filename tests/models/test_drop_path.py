import pytest
import torch
from torchvision.ops import StochasticDepth

from hpt_mlflow.errors import HptError
from hpt_mlflow.models.architecture import Architecture
from hpt_mlflow.models.backbone import build_backbone
from hpt_mlflow.models.drop_path import check_drop_path, set_drop_path

VIT = Architecture("timm:vit_tiny_patch16_224", 32)


def rates(backbone):
    return [module.p for module in backbone.modules() if isinstance(module, StochasticDepth)]


@pytest.mark.parametrize(
    ("arch", "places", "blocks"),
    [
        ("timm:vit_tiny_patch16_224", 24, 12),
        ("timm:convnext_tiny", 18, 18),
        ("convnext_tiny", 18, 18),
        ("efficientnet_b0", 16, 16),
    ],
)
def test_the_rate_rises_linearly_from_block_to_block(arch, places, blocks):
    backbone = build_backbone(Architecture(arch, 32))[0]
    names = set(backbone.state_dict())
    set_drop_path(backbone, 0.3)
    each = [0.3 * number / (blocks - 1) for number in range(blocks) for _ in range(places // blocks)]
    assert rates(backbone) == pytest.approx(each)
    assert set(backbone.state_dict()) == names


def test_branches_are_left_out_only_in_training():
    backbone = build_backbone(VIT)[0]
    images = torch.randn(4, 3, 32, 32)
    plain = backbone.eval()(images)
    set_drop_path(backbone, 0.5)
    assert torch.equal(backbone(images), plain)
    assert not torch.equal(backbone.train()(images), plain)


def test_a_network_without_such_branches_is_refused():
    resnet = Architecture("resnet18", 32)
    with pytest.raises(HptError, match="resnet18 has no blocks of which a branch may be left out") as error:
        check_drop_path(build_backbone(resnet)[0], resnet)
    assert error.value.setting == "drop_path"
    check_drop_path(build_backbone(VIT)[0], VIT)
