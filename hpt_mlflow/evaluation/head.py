"""A linear classifier on features: what every protocol of evaluation returns, and what is served."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class LinearHead(NamedTuple):
    """A linear classifier on standardised features.

    Attributes:
        mean, std: to standardise features with, float32 (F,); 0 and 1 to leave them as they are.
        weight: float32 (F, C).
        bias: float32 (C,).
        multilabel: whether there are C independent labels (sigmoid), or one of C classes (softmax).
    """

    mean: Tensor
    std: Tensor
    weight: Tensor
    bias: Tensor
    multilabel: bool = False

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What is stored of it."""
        return {"mean": self.mean, "std": self.std, "weight": self.weight, "bias": self.bias}

    def logits(self, features: Tensor) -> Tensor:
        """float32 (N, F) to float32 (N, C)."""
        return ((features - self.mean) / self.std) @ self.weight + self.bias

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """float32 (N, F) to float64 (N, C); rows of classes add up to 1.

        In float32 a sigmoid is 1 from a logit of 17 on, which would lose the order that AUROC is about.
        """
        logits = self.logits(torch.from_numpy(features)).double()
        return (logits.sigmoid() if self.multilabel else logits.softmax(dim=1)).numpy()


def plain_head(weight: Tensor, bias: Tensor, multilabel: bool = False) -> LinearHead:
    """A head on features as they are: weight float32 (F, C), bias float32 (C,)."""
    return LinearHead(torch.zeros(len(weight)), torch.ones(len(weight)), weight, bias, multilabel)
