"""Classification by nearest neighbours, which needs no training."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from hpt_mlflow.evaluation.scores import is_multilabel

NEIGHBOURS = 20
# Wu et al., CVPR 2018, section 3.4.
TEMPERATURE = 0.07
CHUNK = 1024


def nearest_neighbour_classes(
    known: np.ndarray, known_labels: np.ndarray, queries: np.ndarray, neighbours: int = NEIGHBOURS
) -> np.ndarray:
    """Classes by the weighted vote of the nearest known features; int64 (M,). See `nearest_neighbour_votes`."""
    votes = nearest_neighbour_votes(known, known_labels, queries, neighbours)
    return votes.argmax(axis=1)


def nearest_neighbours(known: np.ndarray, queries: np.ndarray, count: int) -> np.ndarray:
    """Positions of the nearest known features by cosine similarity, int64 (M, count), the nearest first.

    Args:
        known: float32 (N, F).
        queries: float32 (M, F).
    """
    bank, asked = (F.normalize(torch.from_numpy(features), dim=1) for features in (known, queries))
    return (asked @ bank.T).topk(count, dim=1).indices.numpy()


def nearest_neighbour_votes(
    known: np.ndarray, known_labels: np.ndarray, queries: np.ndarray, neighbours: int = NEIGHBOURS
) -> np.ndarray:
    """The weighted vote of the nearest known features (Wu et al., CVPR 2018, section 3.4).

    Nearness is the cosine similarity s, a vote weighs exp(s / 0.07).

    Args:
        known: float32 (N, F).
        known_labels: int64 (N,), or uint8 (N, C), of which each neighbour votes for all its labels.
        queries: float32 (M, F).

    Returns:
        float32 (M, C): the weight of the votes for a class or label as a share of that of all neighbours, so that
        images with near neighbours and images with distant ones can be ranked together.
    """
    bank = F.normalize(torch.from_numpy(known), dim=1)
    labels = torch.from_numpy(known_labels)
    count = min(neighbours, len(bank))
    votes = []
    for chunk in torch.from_numpy(queries).split(CHUNK):
        similarity, nearest = (F.normalize(chunk, dim=1) @ bank.T).topk(count, dim=1)  # M x k
        weights = (similarity / TEMPERATURE).softmax(dim=1)
        if is_multilabel(known_labels):
            votes.append((weights.unsqueeze(2) * labels[nearest]).sum(dim=1))  # of M x k x C
        else:
            votes.append(torch.zeros(len(chunk), int(labels.max()) + 1).scatter_add_(1, labels[nearest], weights))
    return torch.cat(votes).numpy()
