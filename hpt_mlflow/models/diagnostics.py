"""Numbers that show whether a training learns or collapses."""

from __future__ import annotations

import torch
from torch import Tensor


def effective_rank(embeddings: Tensor) -> float:
    """RankMe (Garrido et al., arXiv 2210.02885, equation 1): exp of the entropy of the normalised singular values.

    Args:
        embeddings: float32 (M, D).

    Returns:
        Between 1 (all embeddings lie on one line) and min(M, D).
    """
    # The squared singular values are the eigenvalues of a small D x D matrix. Near a collapse the rounding of float32
    # would look like more dimensions.
    precise = (embeddings if embeddings.is_cuda else embeddings.cpu()).double()
    gram = precise.T @ precise
    singular_values = torch.linalg.eigvalsh(gram.cpu()).clamp_min(0).sqrt()
    shares = singular_values / singular_values.sum()
    return float(torch.exp(torch.special.entr(shares).sum()))


def embedding_std(embeddings: Tensor) -> Tensor:
    """Standard deviation of L2-normalised embeddings, mean over dimensions (SimSiam, section 4.1).

    0 when all are equal (collapse), 1 / sqrt(D) when they spread over the sphere.

    Args:
        embeddings: float32 (N, D).
    """
    return embeddings.std(dim=0).mean()
