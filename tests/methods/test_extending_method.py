"""The method of docs/extending.md: its loss, alone and in several processes. test_extending.py trains with it."""

from __future__ import annotations

import importlib

import pytest
import torch
from given_views import GivenViews
from test_moco import tiny_backbone
from torch.nn import functional as F

from hpt_mlflow.group import ALONE


@pytest.fixture
def method(examples):
    torch.manual_seed(0)
    barlow_twins = importlib.import_module("my_package.barlow").BarlowTwins
    return barlow_twins(tiny_backbone(), 6, {"redundancy": 0.01}, ALONE)


def test_the_loss_is_that_of_the_paper(method):
    views = torch.rand(2, 16, 3, 8, 8)
    # A correlation does not depend on the scale; here it makes what the batch norm adds to the variance vanish.
    method.encoder[2][2].weight.data *= 1000
    result = method(GivenViews(*views), 0)
    one, two = (method.encoder(view).detach() for view in views)
    # Equation 2: the correlation of each pair of dimensions over the batch.
    correlation = torch.corrcoef(torch.cat([one, two], dim=1).T)[:128, 128:]
    diagonal = correlation.diag()
    expected = (1 - diagonal).square().sum() + 0.01 * (correlation - diagonal.diag()).square().sum()
    torch.testing.assert_close(result.loss.detach(), expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(result.embeddings, F.normalize(one, dim=1))


def test_embeddings_that_agree_and_do_not_repeat_have_no_loss(method):
    method.encoder = torch.nn.Identity()
    # Columns of a Hadamard matrix are uncorrelated, and all but the first have mean 0.
    matrix = torch.ones(1, 1)
    while len(matrix) < 256:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    embeddings = matrix[:, 1:129]
    assert float(method(GivenViews(embeddings, embeddings), 0).loss) == pytest.approx(0, abs=1e-4)
