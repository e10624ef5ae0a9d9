from __future__ import annotations

import numpy as np
import pytest
import torch
from given_views import GivenViews
from test_moco import tiny_backbone, two_views
from torch import nn
from torch.nn import functional as F

from hpt_mlflow.group import ALONE
from hpt_mlflow.methods.byol import BYOL, distance, perceptron
from hpt_mlflow.models.learning import let_learn
from hpt_mlflow.models.update import parse_update


def tiny_byol(target_momentum: float = 0.9) -> BYOL:
    """With a target network that is no longer equal to the online one."""
    torch.manual_seed(0)
    byol = BYOL(tiny_backbone(), 6, {"target_momentum": target_momentum})
    with torch.no_grad():
        for parameter in byol.online_encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return byol


def in_float64(network: nn.Module, inputs: np.ndarray) -> np.ndarray:
    """Projector or predictor in training mode, written down again: linear, batch normalisation, ReLU, linear."""
    weights = {name: tensor.detach().numpy().astype(np.float64) for name, tensor in network.state_dict().items()}
    hidden = inputs @ weights["0.weight"].T + weights["0.bias"]
    hidden = (hidden - hidden.mean(axis=0)) / np.sqrt(hidden.var(axis=0) + 1e-5)
    hidden = np.maximum(hidden * weights["1.weight"] + weights["1.bias"], 0)
    return hidden @ weights["3.weight"].T


def features_of(backbone: nn.Module, view: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return backbone(view).numpy().astype(np.float64)


def by_the_paper(byol: BYOL, views: tuple[torch.Tensor, torch.Tensor]) -> float:
    """Equation 2 for both orders of the views, summed, and its mean over the images."""
    total = 0.0
    for own, other in (views, views[::-1]):
        prediction = in_float64(
            byol.predictor, in_float64(byol.online_encoder[2], features_of(byol.online_encoder[0], own))
        )
        target = in_float64(byol.target_encoder[2], features_of(byol.target_encoder[0], other))
        prediction /= np.linalg.norm(prediction, axis=1, keepdims=True)
        target /= np.linalg.norm(target, axis=1, keepdims=True)
        total += ((prediction - target) ** 2).sum(axis=1).mean()
    return total


def test_the_loss_is_that_of_the_paper():
    byol, views = tiny_byol(), two_views()
    result = byol(GivenViews(*views), 0)
    assert 0.1 < by_the_paper(byol, views) < 8
    assert result.loss.item() == pytest.approx(by_the_paper(byol, views), rel=1e-6)
    with torch.no_grad():
        projections = byol.online_encoder(views[0])
    torch.testing.assert_close(result.embeddings, F.normalize(projections, dim=1))
    assert not result.embeddings.requires_grad


def test_the_loss_does_not_depend_on_the_order_of_the_views():
    byol, (first, second) = tiny_byol(), two_views()
    one, other = byol(GivenViews(first, second), 0).loss, byol(GivenViews(second, first), 0).loss
    torch.testing.assert_close(one, other)


def test_a_distance_is_0_to_the_same_direction_and_4_to_the_opposite_one():
    east, north = torch.eye(2)
    targets = torch.stack([3 * east, north, -2 * east])
    torch.testing.assert_close(distance(east.expand(3, 2), targets), torch.tensor([0.0, 2.0, 4.0]))
    # Each of the two orders of the views has 2 where predictions say nothing.
    assert BYOL.chance({}, 8).startswith("loss 4 ")


def test_targets_have_no_gradient():
    byol, views = tiny_byol(), two_views()
    assert not byol.encode_target(views[0]).requires_grad
    byol(GivenViews(*views), 0).loss.backward()
    assert all(parameter.grad is None for parameter in byol.target_encoder.parameters())
    for network in (byol.online_encoder, byol.predictor):
        assert all(parameter.grad is not None for parameter in network.parameters())


def test_gradients_are_those_for_constant_targets():
    byol, views = tiny_byol(), two_views()
    targets = [byol.encode_target(view).clone() for view in views]
    byol(GivenViews(*views), 0).loss.backward()
    got = [parameter.grad for parameter in byol.online_encoder.parameters()]
    predictions = [F.normalize(byol.predictor(byol.online_encoder(view)), dim=1) for view in views]
    pairs = zip(predictions, reversed(targets), strict=True)
    loss = sum((p - F.normalize(t, dim=1)).square().sum(dim=1).mean() for p, t in pairs)
    expected = torch.autograd.grad(loss, list(byol.online_encoder.parameters()))
    for gradient, other in zip(got, expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-5)


def test_the_target_network_starts_as_the_online_one_and_apart():
    byol = BYOL(tiny_backbone(), 6, {"target_momentum": 0.9})
    for online, target in zip(byol.online_encoder.parameters(), byol.target_encoder.parameters(), strict=True):
        assert torch.equal(online, target)
        assert online.data_ptr() != target.data_ptr()
        assert not target.requires_grad


def test_the_target_network_is_a_moving_average_after_a_step():
    byol = tiny_byol(target_momentum=0.9)
    before = [parameter.clone() for parameter in byol.target_encoder.parameters()]
    optimizer = byol.make_optimizer(0.1, 0.0)
    byol(GivenViews(*two_views()), 0).loss.backward()
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, byol.target_encoder.parameters(), strict=True))
    byol.after_step(0)
    trios = zip(before, byol.online_encoder.parameters(), byol.target_encoder.parameters(), strict=True)
    for old, online, now in trios:
        torch.testing.assert_close(now, 0.9 * old + 0.1 * online.detach(), rtol=1e-5, atol=1e-7)
        assert not torch.equal(now, old)


def test_frozen_weights_stay_equal_in_both_networks():
    torch.manual_seed(0)
    backbone = tiny_backbone()
    let_learn(backbone, parse_update("bn"))
    byol = BYOL(backbone, 6, {"target_momentum": 0.5})
    frozen = backbone[0].weight.detach().clone()
    optimizer = byol.make_optimizer(1.0, 0.0)
    byol(GivenViews(*two_views()), 0).loss.backward()
    optimizer.step()
    byol.after_step(0)
    assert torch.equal(byol.target_encoder[0][0].weight, frozen)
    assert torch.equal(byol.online_encoder[0][0].weight, frozen)
    assert not torch.equal(byol.target_encoder[0][1].weight, torch.ones(6))


def test_projector_and_predictor_are_those_of_the_paper():
    assert [type(layer).__name__ for layer in perceptron(6, ALONE)] == ["Linear", "GroupBatchNorm", "ReLU", "Linear"]
    byol = tiny_byol()
    for network, size in ((byol.online_encoder[2], 6), (byol.predictor, 256)):
        assert (network[0].weight.shape, network[3].weight.shape) == ((4096, size), (256, 4096))


def test_the_backbone_is_the_online_encoder_without_its_projector():
    backbone = tiny_backbone()
    assert BYOL(backbone, 6, {"target_momentum": 0.9}).backbone is backbone


@pytest.mark.parametrize(("step", "momentum"), [(0, 0.9), (5, 0.95), (10, 1.0)])
def test_the_target_slows_down_to_a_standstill_along_a_cosine(step, momentum):
    byol = tiny_byol(target_momentum=0.9)
    byol.steps = 10
    assert byol.momentum_at(step) == pytest.approx(momentum)
