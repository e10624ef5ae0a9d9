"""How many dimensions the features use (RankMe: Garrido et al., ICML 2023, arXiv 2210.02885)."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from hpt_mlflow.evaluation.objectives.base import Examples, Judge
from hpt_mlflow.models.diagnostics import effective_rank
from hpt_mlflow.models.randomness import seeded


class RankJudge(Judge):
    """The effective rank of the features of all its images; between 1 and their number, or the feature size."""

    def answer(self, known: Examples, queries: Examples, classes: int) -> np.ndarray:
        """See `Judge.answer`; nothing is predicted."""
        raise NotImplementedError("a rank predicts nothing")

    def score(self, backbone: nn.Module) -> float:
        """See `Judge.score`; not a share, but more is better."""
        part = np.unique(np.concatenate([part for both in self.rounds for part in both]))
        with seeded(0, self.reader.device):
            features = self.reader.features(backbone, part)
        features = features[~np.isin(part, list(self.reader.images.unreadable))]
        return effective_rank(torch.from_numpy(features)) if np.isfinite(features).all() else float("nan")
