from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from given_views import GivenViews
from test_moco import tiny_backbone, two_views
from torch.nn import functional as F

from hpt_mlflow.methods.simclr import SimCLR, nt_xent


def random_pairs(count: int) -> torch.Tensor:
    return F.normalize(torch.randn(count, 2, 16, generator=torch.Generator().manual_seed(3)), dim=2)


def by_the_paper(pairs: np.ndarray, temperature: float) -> np.ndarray:
    """Equation 1 of SimCLR for both views of each image, float64 (N, 2)."""
    views = pairs.reshape(-1, pairs.shape[2]).astype(np.float64)
    losses = np.empty(len(views))
    for i in range(len(views)):
        others = np.array([np.exp(views[i] @ views[k] / temperature) for k in range(len(views)) if k != i])
        losses[i] = -np.log(np.exp(views[i] @ views[i ^ 1] / temperature) / others.sum())
    return losses.reshape(-1, 2)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_the_loss_is_nt_xent(temperature):
    pairs = random_pairs(6)
    expected = by_the_paper(pairs.numpy(), temperature)
    for rows in (slice(0, 6), slice(0, 2), slice(2, 6)):
        loss, _ = nt_xent(pairs, rows, temperature)
        assert float(loss) == pytest.approx(expected[rows].mean(), abs=1e-6)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_the_loss_and_its_gradients_are_those_of_lightly(temperature):
    lightly = pytest.importorskip("lightly.loss")
    ours, theirs = (random_pairs(8).requires_grad_() for _ in range(2))
    # lightly normalises what it is given.
    loss, _ = nt_xent(F.normalize(ours, dim=2), slice(0, 8), temperature)
    expected = lightly.NTXentLoss(temperature=temperature)(theirs[:, 0], theirs[:, 1])
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), abs=1e-6)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=1e-5)


def test_embeddings_without_information_give_the_level_of_chance():
    loss, _ = nt_xent(torch.ones(8, 2, 4) / 2, slice(0, 8), 0.5)
    assert float(loss) == pytest.approx(math.log(15))
    assert SimCLR.chance({}, 8) == "loss ln(2 x batch - 1) = 2.71, top-1 = 6.67%"


def test_top1_is_the_share_of_views_next_to_the_other_view_of_their_image():
    one, two = torch.eye(3)[0], torch.eye(3)[1]
    assert float(nt_xent(torch.stack([torch.stack([one, one]), torch.stack([two, two])]), slice(0, 2), 0.5)[1]) == 1
    assert float(nt_xent(torch.stack([torch.stack([one, two]), torch.stack([one, two])]), slice(0, 2), 0.5)[1]) == 0


def test_both_views_are_embedded_as_one_batch():
    torch.manual_seed(0)
    simclr = SimCLR(tiny_backbone(), 6, {"temperature": 0.5})
    views = two_views()
    result = simclr(GivenViews(*views), 0)
    with torch.no_grad():
        embedded = F.normalize(simclr.encoder(torch.cat(views)), dim=1)
    expected, share = nt_xent(torch.stack(embedded.chunk(2), dim=1), slice(0, 8), 0.5)
    torch.testing.assert_close(result.loss.detach(), expected)
    torch.testing.assert_close(result.metrics[0], share)
    torch.testing.assert_close(result.embeddings, embedded[:8])
    assert not result.embeddings.requires_grad


def test_the_backbone_is_the_encoder_without_its_head():
    backbone = tiny_backbone()
    simclr = SimCLR(backbone, 6, {"temperature": 0.5})
    assert simclr.backbone is backbone
    assert all(name.startswith("encoder.") for name in simclr.state_dict())
