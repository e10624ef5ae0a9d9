from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hpt_mlflow.models.backbone import batch_norms, build_backbone
from hpt_mlflow.models.folding import fold_batch_norm

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
# BatchNorm layers that are left: those of DenseNet that stand before a convolution, or behind a concatenation.
LEFT = {
    "resnet18": 0,
    "resnet50": 0,
    "shufflenet_v2_x0_5": 0,
    "mobilenet_v3_small": 0,
    "efficientnet_b0": 0,
    "densenet121": 62,
    "googlenet": 0,
    "vit_b_16": 0,
    "timm:resnet10t": 0,
    "timm:efficientnet_lite0": 0,
    "timm:mobilenetv3_small_050": 0,
    "timm:tf_efficientnet_lite0": 0,
}


def with_random_norms(network: nn.Module) -> nn.Module:
    """As after a training: nothing of BatchNorm is 0 or 1."""
    generator = torch.Generator().manual_seed(1)
    for layer in batch_norms(network):
        for tensor, low, high in (
            (layer.running_mean, -0.5, 0.5),
            (layer.running_var, 0.5, 2.0),
            (layer.weight, 0.5, 1.5),
            (layer.bias, -0.5, 0.5),
        ):
            if tensor is not None:
                tensor.data.uniform_(low, high, generator=generator)
    return network


def features(network: nn.Module, images: torch.Tensor = IMAGES) -> torch.Tensor:
    with torch.no_grad():
        return network(images).flatten(1)


def assert_same_features(network: nn.Module, folded: nn.Module, images: torch.Tensor = IMAGES) -> None:
    expected, found = features(copy.deepcopy(network).eval(), images), features(folded, images)
    assert (found - expected).norm() <= 1e-4 * expected.norm()


@pytest.mark.parametrize("arch", LEFT)
def test_folded_networks_have_the_same_features(arch):
    if arch.startswith("timm:"):
        pytest.importorskip("timm")
    torch.manual_seed(0)
    images = IMAGES[..., :32, :32] if arch == "vit_b_16" else IMAGES
    network = with_random_norms(build_backbone(arch, images.shape[-1])[0])
    folded = fold_batch_norm(network)
    assert len(batch_norms(folded)) == LEFT[arch]
    assert_same_features(network, folded, images)


@pytest.mark.parametrize("training", [True, False])
def test_the_given_network_is_left_exactly_as_it_is(training):
    torch.manual_seed(0)
    network = with_random_norms(build_backbone("resnet18", 32)[0]).train(training)
    network.layer1.eval()
    network.conv1.requires_grad_(False)
    network(IMAGES).sum().backward()
    network.compile()
    compiled, modules = network._compiled_call_impl, list(network.modules())
    network.layer1[0].conv1.register_forward_hook(lambda *_: None)
    before = copy.deepcopy(network.state_dict())
    grads = [None if p.grad is None else p.grad.clone() for p in network.parameters()]
    modes = [layer.training for layer in network.modules()]
    folded = fold_batch_norm(network, IMAGES)
    folded.to(memory_format=torch.channels_last)
    assert list(network.modules()) == modules
    assert [layer.training for layer in network.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(p.is_contiguous() for p in network.parameters())
    assert [p.requires_grad for p in network.parameters()].count(False) == 1
    for parameter, grad in zip(network.parameters(), grads, strict=True):
        assert (parameter.grad is None and grad is None) or torch.equal(parameter.grad, grad)
    assert network._compiled_call_impl is compiled
    assert len(network.layer1[0].conv1._forward_hooks) == 1
    assert not {id(p) for p in network.parameters()} & {id(p) for p in folded.parameters()}
    assert not any(layer.training for layer in folded.modules())


class LookedAt(nn.Module):
    """The convolution's output is used beside BatchNorm."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.conv(x)
        return x + self.norm(x)


class SharedConvolution(LookedAt):
    def __init__(self):
        super().__init__()
        self.conv, self.other = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x):
        return self.norm(self.conv(self.other(self.conv(x))))


class SharedNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.second, self.norm = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.norm(self.second(self.norm(self.conv(x))))


class BothTwiceApart(SharedNorm):
    """As often as each other, but not always together."""

    def forward(self, x):
        return self.norm(self.conv(x)).sum() + self.norm(x) + self.conv(x).sum()


class SharedUnderTwoNames(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)
        self.alias = self.conv

    def forward(self, x):
        return self.norm(self.conv(self.alias(x)))


class ReadsItsWeights(LookedAt):
    def forward(self, x):
        return self.norm(self.conv(x)) + self.conv.weight.sum() + self.norm.weight.sum()


class StandardisedConvolution(nn.Conv2d):
    def forward(self, x):
        weight = (self.weight - self.weight.mean()) / self.weight.std()
        return F.conv2d(x, weight, self.bias)


class HookedConvolution(LookedAt):
    """What comes out of the layer is not what its weights say."""

    def __init__(self):
        super().__init__()
        self.conv.register_forward_hook(lambda layer, given, found: found.relu())

    def forward(self, x):
        return self.norm(self.conv(x))


class AlwaysTraining(nn.Sequential):
    def train(self, mode=True):
        return super().train(True)

    @classmethod
    def of_a_pair(cls):
        return cls(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


NOT_FOLDED = {
    "looked at": LookedAt,
    "shared convolution": SharedConvolution,
    "shared BatchNorm": SharedNorm,
    "both twice, apart": BothTwiceApart,
    "shared under two names": SharedUnderTwoNames,
    "weights that are read": ReadsItsWeights,
    "hook": HookedConvolution,
    "no running statistics": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
    "BatchNorm first": lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)),
    "something between": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)),
    "standardised weights": lambda: nn.Sequential(StandardisedConvolution(3, 4, 3), nn.BatchNorm2d(4)),
    "weights by a rule": lambda: nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4)
    ),
    "transposed": lambda: nn.Sequential(nn.ConvTranspose2d(3, 4, 3), nn.BatchNorm2d(4)),
}


@pytest.mark.parametrize("kind", NOT_FOLDED)
def test_what_cannot_be_folded_is_left(kind):
    torch.manual_seed(0)
    network = with_random_norms(NOT_FOLDED[kind]())
    # Without an example, so that nothing but care keeps them right.
    folded = fold_batch_norm(network)
    assert len(batch_norms(folded)) == len(batch_norms(network))
    assert_same_features(network, folded)


def test_a_norm_that_measures_each_batch_is_left():
    network = AlwaysTraining.of_a_pair()
    assert len(batch_norms(fold_batch_norm(network))) == 1


@pytest.mark.parametrize(
    "kind", [NOT_FOLDED["weights by a rule"], NOT_FOLDED["no running statistics"], AlwaysTraining.of_a_pair]
)
def test_one_pair_that_cannot_be_folded_does_not_keep_others_from_it(kind):
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    network = with_random_norms(nn.Sequential(kind(), plain))
    folded = fold_batch_norm(network)
    assert len(batch_norms(folded)) == 1
    assert_same_features(network, folded)


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect"])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_plain_pairs_are_folded(padding_mode, affine, bias):
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 6, 3, stride=2, padding=1, groups=3, bias=bias, padding_mode=padding_mode)
    network = with_random_norms(nn.Sequential(convolution, nn.BatchNorm2d(6, eps=0.1, affine=affine)))
    folded = fold_batch_norm(network)
    assert not batch_norms(folded)
    assert_same_features(network, folded)


class Untraceable(nn.Module):
    """Goes a way that depends on what it sees."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))

    def forward(self, x):
        return self.layers(x) if x.mean() > 0 else x


class Remembering(Untraceable):
    """Keeps what it was given first, which is a stand-in while it is traced; then cannot be traced any further."""

    first = None

    def forward(self, x):
        if self.first is None:
            self.first = x.mean()
        return super().forward(x) + 0 * self.first


class AnotherWay(Untraceable):
    """Can be traced, but goes another way then."""

    def forward(self, x):
        found = self.layers(x)
        return found.relu() if isinstance(x, torch.Tensor) else found


@pytest.mark.parametrize(
    ("network", "example"),
    [(Untraceable(), None), (Remembering(), None), (Remembering(), IMAGES), (AnotherWay(), IMAGES)],
)
def test_what_cannot_be_traced_is_copied(network, example):
    network = with_random_norms(network).train()
    folded = fold_batch_norm(network, example)
    assert len(batch_norms(folded)) == 1
    assert type(folded) is type(network)
    assert folded is not network
    assert not folded.training
    assert network.training
    assert_same_features(network, folded)


class SlightlyOther(Untraceable):
    """Its features are others by a share when it is traced."""

    share = 0.0

    def forward(self, x):
        return self.layers(x) * (1.0 if isinstance(x, torch.Tensor) else 1 + self.share)


@pytest.mark.parametrize(("share", "left"), [(0.004, 0), (0.02, 1), (float("nan"), 1)])
def test_features_may_change_as_much_as_a_gpu_rounds_them_but_no_more(share, left):
    network = with_random_norms(SlightlyOther())
    network.share = share
    assert len(batch_norms(fold_batch_norm(network, IMAGES))) == left


def test_an_example_that_agrees_does_not_keep_a_network_from_being_folded():
    torch.manual_seed(0)
    assert not batch_norms(fold_batch_norm(build_backbone("resnet18", 32)[0], IMAGES))
