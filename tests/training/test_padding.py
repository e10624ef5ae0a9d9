from __future__ import annotations

import copy

import pytest
import torch
from given_views import GivenViews
from timm.layers import Conv2dSame
from torch import nn

from hpt_mlflow.data.statistics import ChannelStatistics
from hpt_mlflow.methods import METHODS
from hpt_mlflow.models.architecture import Architecture
from hpt_mlflow.models.backbone import build_backbone
from hpt_mlflow.training.loop import Trainer
from hpt_mlflow.training.padding import keep_unseen_weights
from hpt_mlflow.training.plan import Plan

PLAN = Plan(
    steps=2,
    batch_size=8,
    learning_rate=0.1,
    warmup_steps=1,
    weight_decay=1e-4,
    options={"key_momentum": 0.9, "temperature": 0.2, "queue_size": 16, "bn_splits": 2},
    seed=3,
)


class Poisoned(torch.autograd.Function):
    """The weight itself; a gradient of exactly 0 becomes NaN on its way back, as uninitialised memory would have it."""

    @staticmethod
    def forward(ctx, weight):
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx, gradient):
        return torch.where(gradient == 0, float("nan"), gradient)


class PoisonedConvolution(nn.Conv2d):
    def forward(self, images):
        return self._conv_forward(images, Poisoned.apply(self.weight), self.bias)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"),
    [(3, 1, 1, 1), (3, 2, 1, 1), (5, 1, 2, 1), (7, 2, 3, 1), (3, 1, 2, 2), ((3, 1), 1, (1, 0), 1), (3, 1, "same", 1)],
)
def test_weights_that_see_only_padding_get_no_gradient_and_all_others_their_own(
    size, kernel, stride, padding, dilation
):
    torch.manual_seed(0)
    images = torch.randn(6, 2, size, size)
    settings = {"stride": stride, "padding": padding, "dilation": dilation}
    plain, kept = nn.Conv2d(2, 3, kernel, **settings), PoisonedConvolution(2, 3, kernel, **settings)
    kept.load_state_dict(plain.state_dict())
    keep_unseen_weights(kept, images)
    for layer in (plain, kept):
        layer(images).square().sum().backward()
    assert torch.equal(kept.weight.grad, plain.weight.grad)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 2)])
def test_so_do_those_of_convolutions_that_pad_as_tensorflow_does(size, kernel, stride):
    torch.manual_seed(0)
    images = torch.randn(6, 2, size, size)
    plain, kept = (Conv2dSame(2, 3, kernel, stride=stride) for _ in range(2))
    kept.load_state_dict(plain.state_dict())
    keep_unseen_weights(kept, images)
    hooks = kept.weight._backward_hooks
    for layer in (plain, kept):
        layer(images).square().sum().backward()
    assert torch.equal(kept.weight.grad, plain.weight.grad)
    assert bool(hooks) == bool((plain.weight.grad == 0).any())


@pytest.mark.parametrize("sizes", [(7, 1), (4, 2), (3, 3), (1, 7)])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 1), (5, 1, 2), (3, 2, 1)])
def test_weights_that_images_of_one_size_see_get_the_gradient_of_these_alone(sizes, kernel, stride, padding):
    torch.manual_seed(0)
    batches = [torch.randn(6, 2, size, size) for size in sizes]
    plain = nn.Conv2d(2, 3, kernel, stride=stride, padding=padding)
    kept = PoisonedConvolution(2, 3, kernel, stride=stride, padding=padding)
    kept.load_state_dict(plain.state_dict())
    keep_unseen_weights(kept, *batches)
    results = [[layer(batch) for batch in batches] for layer in (plain, kept)]
    for result, other in zip(*results, strict=True):
        assert torch.equal(result, other)
    for outputs in results:
        sum(output.square().sum() for output in outputs).backward()
    torch.testing.assert_close(kept.weight.grad, plain.weight.grad)
    assert isinstance(kept.weight, nn.Parameter)
    assert kept.state_dict().keys() == plain.state_dict().keys()


def test_a_layer_has_its_weights_back_after_a_call_that_fails():
    layer = nn.Conv2d(2, 3, 3, padding=1)
    weight = layer.weight
    keep_unseen_weights(layer, torch.randn(1, 2, 5, 5), torch.randn(1, 2, 1, 1))
    with pytest.raises(RuntimeError):
        layer(torch.randn(1, 4, 1, 1))
    assert layer.weight is weight


def test_a_training_with_small_views_in_bfloat16_has_finite_gradients():
    torch.manual_seed(0)
    network, width = build_backbone(Architecture("resnet18", 32))
    options = METHODS["dino"].presets["quick"] | {"prototypes": 16}
    plan = Plan(**{**PLAN.__dict__, "precision": "bfloat16", "method": "dino", "options": options})
    trainer = Trainer(network, width, plan, ChannelStatistics((0.5,) * 3, (0.25,) * 3), torch.device("cpu"))
    views = [torch.randn(4, 3, size, size) for size in [32] * 2 + [14] * 8]
    for _ in range(2):
        result = trainer.learn(GivenViews(*views))
        assert torch.isfinite(result.loss)
        assert all(torch.isfinite(parameter.grad).all() for parameter in trainer.method.learner.parameters())
    # Views of 32 pixels see what those of 14 do not.
    layer = trainer.method.learner.layer4[0].conv1
    assert layer._forward_pre_hooks
    assert layer.weight.grad[..., 2, 2].any()


def test_a_network_is_left_as_it_was():
    network, _ = build_backbone(Architecture("resnet18", 16))
    network.train()
    before = copy.deepcopy(network.state_dict())
    keep_unseen_weights(network, torch.randn(2, 3, 16, 16))
    assert all(layer.training for layer in network.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert not any(layer._forward_pre_hooks for layer in network.modules())
    kept = {name for name, weight in network.named_parameters() if weight._backward_hooks}
    # At 16 pixels, the maps of the last block have one pixel.
    assert {"layer4.0.conv2.weight", "layer4.1.conv1.weight", "layer4.1.conv2.weight"} <= kept
    assert not {"conv1.weight", "layer1.0.conv1.weight"} & kept


@pytest.mark.parametrize(("precision", "is_kept"), [("bfloat16", True), ("float32", False)])
def test_a_training_in_bfloat16_keeps_them(precision, is_kept):
    torch.manual_seed(0)
    network, width = build_backbone(Architecture("resnet18", 16))
    plan = Plan(**{**PLAN.__dict__, "precision": precision})
    trainer = Trainer(network, width, plan, ChannelStatistics((0.5,) * 3, (0.25,) * 3), torch.device("cpu"))
    for _ in range(2):
        trainer.learn(GivenViews(torch.randn(8, 3, 16, 16), torch.randn(8, 3, 16, 16)))
    weight = trainer.backbone.layer4[1].conv1.weight
    assert bool(weight._backward_hooks) == is_kept
    if is_kept:
        assert len(weight._backward_hooks) == 1
        outer = torch.ones(3, 3, dtype=torch.bool)
        outer[1, 1] = False
        assert not weight.grad[..., outer].any()
        assert weight.grad[..., 1, 1].any()
