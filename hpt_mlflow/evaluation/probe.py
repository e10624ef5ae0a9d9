"""A linear classifier on frozen features, its regularisation chosen on validation."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

# Inverse strengths of the L2 penalty, strongest penalty first; each fit starts from the one before.
REGULARISATIONS = tuple(10.0**exponent for exponent in (-4, -3, -2, -1, 0))
ITERATIONS = 100


class Probe(NamedTuple):
    """A linear classifier on standardised features.

    Attributes:
        mean, std: of the train features, float32 (F,).
        weight: float32 (F, classes).
        bias: float32 (classes,).
        regularisation: the C that was best on validation.
        validation_accuracy: top-1 on validation, in [0, 1].
    """

    mean: Tensor
    std: Tensor
    weight: Tensor
    bias: Tensor
    regularisation: float
    validation_accuracy: float

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Classes, int64 (N,), of features, float32 (N, F)."""
        standardised = (torch.from_numpy(features) - self.mean) / self.std
        return (standardised @ self.weight + self.bias).argmax(dim=1).numpy()


def fit_probe(
    train_features: np.ndarray, train_labels: np.ndarray, validation_features: np.ndarray, validation_labels: np.ndarray
) -> Probe:
    """Multinomial logistic regression for each of `REGULARISATIONS`; the one that is best on validation is kept.

    For a given C it minimises the sum of the cross-entropies plus |weight|^2 / (2 C), as scikit-learn's
    LogisticRegression does for three or more classes, with at most `ITERATIONS` of L-BFGS: stopping early regularises
    too, and validation judges.

    Args:
        train_features, validation_features: float32 (N, F) and (M, F).
        train_labels, validation_labels: int64 (N,) and (M,).
    """
    features, labels = torch.from_numpy(train_features), torch.from_numpy(train_labels)
    mean, std = features.mean(dim=0), features.std(dim=0, correction=0)
    std = torch.where(std > 0, std, 1)
    standardised = (features - mean) / std
    classes = int(max(train_labels.max(), validation_labels.max())) + 1
    weight, bias = torch.zeros(features.shape[1], classes), torch.zeros(classes)
    probes = []
    for regularisation in REGULARISATIONS:
        weight, bias = _fit(standardised, labels, weight, bias, regularisation)
        probe = Probe(mean, std, weight, bias, regularisation, 0.0)
        accuracy = float((probe.predict(validation_features) == validation_labels).mean())
        probes.append(probe._replace(validation_accuracy=accuracy))
    return max(probes, key=lambda probe: probe.validation_accuracy)


def _fit(
    features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor, regularisation: float
) -> tuple[Tensor, Tensor]:
    """Weight and bias after L-BFGS from the given ones."""
    weight, bias = weight.clone().requires_grad_(), bias.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        optimizer.zero_grad()
        penalty = weight.square().sum() / (2 * regularisation * len(features))
        loss = F.cross_entropy(features @ weight + bias, labels) + penalty
        loss.backward()
        return loss

    optimizer.step(objective)
    return weight.detach(), bias.detach()
