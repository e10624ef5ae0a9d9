from __future__ import annotations

import numpy as np
import pytest
import torch
from given_views import GivenViews
from scipy.integrate import quad
from test_moco import tiny_backbone, two_views

from hpt_mlflow.methods.lejepa import LeJEPA, directions, distance_to_mean, mixed, sigreg


def tiny_lejepa(weight=0.05):
    torch.manual_seed(0)
    return LeJEPA(tiny_backbone(), 6, {"sigreg_weight": weight})


def by_the_paper(numbers: np.ndarray) -> float:
    """The Epps-Pulley statistic of some numbers, by adaptive integration of its definition."""

    def integrand(t):
        found = np.exp(1j * t * numbers).mean()
        return abs(found - np.exp(-(t**2) / 2)) ** 2 * np.exp(-(t**2) / 2)

    return len(numbers) * quad(integrand, -3, 3, limit=200)[0]


@pytest.mark.parametrize("scale", [0.2, 1.0, 2.0])
def test_sigreg_is_the_mean_of_the_statistic_over_views_and_directions(scale):
    generator = torch.Generator().manual_seed(1)
    embeddings = scale * torch.randn(2, 16, 16, generator=generator) + 0.1
    along = directions(7)[:, :5]
    expected = [by_the_paper((view.double() @ along.double()[:, i]).numpy()) for view in embeddings for i in range(5)]
    # The trapezoidal rule with 17 points is off by less than 1%.
    assert float(sigreg(embeddings, along)) == pytest.approx(np.mean(expected), rel=0.01)


def test_sigreg_is_the_sum_of_the_trapezoidal_rule_to_the_last_digits():
    embeddings = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(1))
    along = directions(7)[:, :5]
    points = np.linspace(-3, 3, 33)
    phases = np.exp(1j * (embeddings.double() @ along.double()).numpy()[..., None] * points).mean(axis=1)
    distances = np.abs(phases - np.exp(-(points**2) / 2)) ** 2 * np.exp(-(points**2) / 2)
    expected = 16 * (distances[..., 1:] + distances[..., :-1]).sum(axis=-1).mean() * (points[1] - points[0]) / 2
    assert float(sigreg(embeddings, along)) == pytest.approx(expected, rel=1e-6)


def test_normal_embeddings_have_the_statistic_that_is_named_as_expected():
    embeddings = torch.randn(4, 2000, 16, generator=torch.Generator().manual_seed(0))
    named = float(LeJEPA.chance({}, 256).split("above ")[1].split(",")[0])
    assert float(sigreg(embeddings, directions(0))) == pytest.approx(named, rel=0.05)
    assert float(sigreg(torch.zeros(4, 2000, 16), directions(0))) > 100 * named
    assert float(sigreg(3 * embeddings, directions(0))) > 100 * named


def test_the_statistic_draws_embeddings_to_a_standard_normal_distribution():
    torch.manual_seed(0)
    embeddings = (0.1 * torch.randn(1, 256, 16) + 0.5).requires_grad_()
    optimizer = torch.optim.Adam([embeddings], lr=0.05)
    for step in range(120):
        optimizer.zero_grad()
        sigreg(embeddings, directions(step)).backward()
        optimizer.step()
    values = embeddings.detach()[0]
    assert float(values.mean(dim=0).abs().mean()) < 0.1
    assert float(values.std(dim=0).mean()) == pytest.approx(1, abs=0.15)


def test_the_distance_is_that_from_the_mean_of_all_views():
    embeddings = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(0))
    expected = np.mean((embeddings.numpy() - embeddings.numpy().mean(axis=0, keepdims=True)) ** 2)
    assert float(distance_to_mean(embeddings)) == pytest.approx(float(expected), abs=1e-6)


def test_the_loss_weighs_both_terms():
    views = GivenViews(*two_views(), *two_views())
    result = tiny_lejepa(0.25)(views, 3)
    prediction, regularity = result.metrics
    assert float(result.loss.detach()) == pytest.approx(0.75 * float(prediction) + 0.25 * float(regularity), rel=1e-6)
    assert result.embeddings.shape == (8, 16)
    assert not result.embeddings.requires_grad


def test_directions_are_of_length_1_and_those_of_their_step():
    torch.testing.assert_close(directions(5).norm(dim=0), torch.ones(256))
    torch.testing.assert_close(directions(5), directions(5), rtol=0, atol=0)
    assert not torch.equal(directions(5), directions(6))


def test_directions_are_those_of_normal_numbers_and_the_same_in_a_graph():
    drawn = torch.stack([directions(step) for step in range(20)])  # steps x d x M
    # On a sphere, the square of each coordinate is 1 / 16 on average, and no two go together.
    flat = drawn.transpose(1, 2).reshape(-1, 16).double()
    torch.testing.assert_close(flat.T @ flat / len(flat), torch.eye(16).double() / 16, rtol=0, atol=0.004)
    assert abs(float(flat.mean())) < 0.002
    assert len(torch.unique(drawn)) > 0.99 * drawn.numel()
    torch.testing.assert_close(directions(torch.tensor(7)), directions(7), rtol=0, atol=0)


def test_the_bits_of_directions_are_those_of_splitmix64():
    """The first numbers of the generator that begins at 0, as published with xoshiro."""
    # Its first call mixes one golden step; ours begins to count at 0.
    assert mixed(torch.tensor([1, 2, 3])).tolist() == [
        number - 2**64 if number >= 2**63 else number
        for number in (0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F)
    ]


def test_the_backbone_is_the_encoder_without_its_projector():
    backbone = tiny_backbone()
    assert LeJEPA(backbone, 6, {"sigreg_weight": 0.05}).backbone is backbone
