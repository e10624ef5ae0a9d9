"""A linear classifier on features: what every protocol of evaluation ends in, and what is served."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class LinearHead(NamedTuple):
    """A linear classifier on standardised features.

    Attributes:
        mean, std: that features are standardised with, float32 (F,); 0 and 1 where they are taken as they are.
        weight: float32 (F, C).
        bias: float32 (C,).
        multilabel: whether each of the C labels is decided on its own (sigmoid) or one of C classes is (softmax).
    """

    mean: Tensor
    std: Tensor
    weight: Tensor
    bias: Tensor
    multilabel: bool = False

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What it is kept by."""
        return {"mean": self.mean, "std": self.std, "weight": self.weight, "bias": self.bias}

    def logits(self, features: Tensor) -> Tensor:
        """float32 (N, F) to float32 (N, C)."""
        return ((features - self.mean) / self.std) @ self.weight + self.bias

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """float32 (N, F) to float64 (N, C): of classes, rows add up to 1; of labels, each on its own.

        In float32 a sigmoid is 1 from a logit of 17 on, and the AUROC would lose the order of what is surely there.
        """
        logits = self.logits(torch.from_numpy(features)).double()
        return (logits.sigmoid() if self.multilabel else logits.softmax(dim=1)).numpy()


def plain_head(weight: Tensor, bias: Tensor, multilabel: bool = False) -> LinearHead:
    """A head on features as they are: weight float32 (F, C), bias float32 (C,)."""
    return LinearHead(torch.zeros(len(weight)), torch.ones(len(weight)), weight, bias, multilabel)
