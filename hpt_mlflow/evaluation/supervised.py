"""What all trainings with labels share, of a head or of a whole network: loss, schedule, head."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpt_mlflow.evaluation.head import LinearHead, plain_head
from hpt_mlflow.evaluation.scores import is_multilabel, primary_name, primary_score

# Spread of a new head's weights in the paper's reference code (ClsHead.init_weights).
INITIAL_STD = 0.01


class CurvePoint(NamedTuple):
    """Primary scores on validation and test after a number of steps; NaN if unknown."""

    step: int
    validation_score: float
    test_score: float


def new_head(feature_size: int, classes: int, seed: int) -> nn.Linear:
    """A linear layer initialised as in the reference code: weights normal with deviation 0.01, bias 0."""
    head: nn.Linear = nn.utils.skip_init(nn.Linear, feature_size, classes)
    generator = torch.Generator().manual_seed(seed)
    nn.init.normal_(head.weight, std=INITIAL_STD, generator=generator)
    nn.init.zeros_(head.bias)
    return head


def as_linear_head(layer: nn.Linear, multilabel: bool) -> LinearHead:
    """A copy of a trained layer on the CPU, as a classifier."""
    weight, bias = (parameter.detach().float().cpu().clone() for parameter in (layer.weight, layer.bias))
    return plain_head(weight.T.contiguous(), bias, multilabel)


def targets(truth: np.ndarray, device: torch.device) -> Tensor:
    """Labels as `supervised_loss` takes them: classes int64 (N,), or labels float32 (N, C)."""
    tensor = torch.from_numpy(truth).to(device)
    return tensor.float() if is_multilabel(truth) else tensor


def supervised_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """Mean cross-entropy of classes, or mean binary cross-entropy of multi-label truth.

    Args:
        logits: float32 (N, C).
        truth: see `targets`.
    """
    if truth.ndim == 2:
        return F.binary_cross_entropy_with_logits(logits, truth)
    return F.cross_entropy(logits, truth)


def learning_rate_at(learning_rate: float, step: int, steps: int) -> float:
    """The rate of a step, counted from 0: divided by 10 at a third and again at two thirds of the steps."""
    return learning_rate * 0.1 ** sum(step >= round(steps * third / 3) for third in (1, 2))


def score_of(head: LinearHead, features: np.ndarray, truth: np.ndarray) -> float:
    """The primary score; NaN if logits are not finite.

    Logits are ranked, since many float32 probabilities would round to the same 1.

    Args:
        features: float32 (N, F).
        truth: int64 (N,) or uint8 (N, C).
    """
    logits = head.logits(torch.from_numpy(features)).numpy()
    return primary_score(truth, logits) if np.isfinite(logits).all() else float("nan")


def chance(truth: np.ndarray) -> float:
    """The primary score of the same answer for all: the share of the largest class, or an AUROC of 0.5."""
    return 0.5 if is_multilabel(truth) else float(np.bincount(truth).max() / len(truth))


def why_not_converged(score: float, step: int, truth: np.ndarray, lost_at: int | None, learning_rate: float) -> str:
    """Why a training did not converge, in words; empty if it did.

    Args:
        score: the best on validation.
        step: at which it was reached; 0 for before training.
        truth: labels of validation.
        lost_at: the step at which the loss was found not to be finite, or None.
    """
    reasons = []
    if lost_at is not None:
        reasons.append(f"the loss was no longer a finite number by step {lost_at}; lower learning_rate {learning_rate}")
    floor, reached_by = chance(truth), "the same answer for all"
    if step == 0 and score > floor:
        floor, reached_by = score, "the head before training"
    if not score > floor:
        reasons.append(
            f"{primary_name(truth)} on validation never rose above {floor:.3f}, which {reached_by} reaches; train for "
            "more steps, or use other features"
        )
    return "; ".join(reasons)
