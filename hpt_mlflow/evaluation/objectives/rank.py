"""How many dimensions the features use (RankMe: Garrido et al., ICML 2023, arXiv 2210.02885)."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from hpt_mlflow.evaluation.objectives.base import Examples, Judge
from hpt_mlflow.models.diagnostics import effective_rank


class RankJudge(Judge):
    """The effective rank of the features of all images, between 1 and their number or the feature size."""

    def examples(self, backbone: nn.Module, part: np.ndarray) -> Examples:
        """See `Judge.examples`; there are no targets."""
        return Examples(self.reader.features(backbone, part), np.zeros_like(part), part)

    def score_of(self, examples: Examples) -> float:
        """See `Judge.score_of`."""
        return effective_rank(torch.from_numpy(examples.features))
