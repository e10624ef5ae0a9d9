from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from hpt_mlflow.models.diagnostics import effective_rank, embedding_std


def by_singular_values(embeddings: torch.Tensor) -> float:
    values = np.linalg.svd(embeddings.numpy().astype(np.float64), compute_uv=False)
    shares = values[values > 1e-6 * values.max()]
    shares = shares / shares.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


@pytest.mark.parametrize("shape", [(50, 8), (8, 50), (300, 128)])
def test_effective_rank_is_that_of_the_singular_values(shape):
    torch.manual_seed(0)
    embeddings = torch.randn(*shape) * torch.linspace(0.1, 3, shape[1])
    assert effective_rank(embeddings) == pytest.approx(by_singular_values(embeddings), rel=0.01)


@pytest.mark.parametrize("dimensions", [1, 5, 16])
def test_orthonormal_embeddings_have_full_rank(dimensions):
    torch.manual_seed(0)
    orthonormal, _ = torch.linalg.qr(torch.randn(dimensions, dimensions))
    assert effective_rank(orthonormal) == pytest.approx(dimensions, rel=1e-4)


def test_effective_rank_does_not_depend_on_scale():
    torch.manual_seed(0)
    embeddings = torch.randn(20, 6)
    assert effective_rank(100 * embeddings) == pytest.approx(effective_rank(embeddings), rel=1e-4)


def test_axes_that_are_used_alike_count_one_each():
    assert effective_rank(torch.eye(6)[:, :4].repeat(3, 1)) == pytest.approx(4, rel=1e-6)


@pytest.mark.parametrize("dimensions", [8, 128])
def test_one_line_has_rank_1(dimensions):
    torch.manual_seed(0)
    line = F.normalize(torch.randn(512, 1) @ torch.randn(1, dimensions), dim=1)
    assert effective_rank(line) == pytest.approx(1, abs=0.01)


def test_embedding_std_of_equal_embeddings_is_0():
    assert float(embedding_std(torch.full((5, 4), 0.5))) == 0


def test_embedding_std_is_the_mean_over_dimensions():
    torch.manual_seed(0)
    embeddings = torch.randn(7, 3)
    assert float(embedding_std(embeddings)) == pytest.approx(np.std(embeddings.numpy(), axis=0, ddof=1).mean())


def test_embedding_std_on_the_sphere_is_that_of_a_healthy_training():
    torch.manual_seed(0)
    spread = F.normalize(torch.randn(2000, 128), dim=1)
    assert float(embedding_std(spread)) == pytest.approx(1 / math.sqrt(128), rel=0.02)
