"""Classification by nearest neighbours: what the features say without any training."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

NEIGHBOURS = 20
# Wu et al., CVPR 2018, section 3.4.
TEMPERATURE = 0.07
CHUNK = 1024


def nearest_neighbour_classes(
    known: np.ndarray, known_labels: np.ndarray, asked: np.ndarray, neighbours: int = NEIGHBOURS
) -> np.ndarray:
    """Classes by the weighted vote of the nearest known features (Wu et al., CVPR 2018, section 3.4).

    Nearness is the cosine similarity s, a vote weighs exp(s / 0.07).

    Args:
        known: float32 (N, F).
        known_labels: int64 (N,).
        asked: float32 (M, F).

    Returns:
        int64 (M,).
    """
    bank = F.normalize(torch.from_numpy(known), dim=1)
    labels = torch.from_numpy(known_labels)
    count = min(neighbours, len(bank))
    answers = []
    for chunk in torch.from_numpy(asked).split(CHUNK):
        similarity, nearest = (F.normalize(chunk, dim=1) @ bank.T).topk(count, dim=1)  # M x k
        votes = torch.zeros(len(chunk), int(labels.max()) + 1)
        votes.scatter_add_(1, labels[nearest], (similarity / TEMPERATURE).exp())
        answers.append(votes.argmax(dim=1))
    return torch.cat(answers).numpy()
