"""Logistic regression on features, with its regularisation chosen on validation."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hpt_mlflow.evaluation.head import LinearHead
from hpt_mlflow.evaluation.scores import is_multilabel, primary_score
from hpt_mlflow.gpu_errors import lacks_memory

# Inverse strengths of the L2 penalty, strongest penalty first; each fit starts from the one before.
REGULARISATIONS = tuple(10.0**exponent for exponent in (-5, -4, -3, -2, -1, 0))
# Iterations of L-BFGS in each fit after which the classifier is recorded.
LOOKS = (1, 2, 5, 10, 20, 35, 50, 75, 100)
# A fit has converged if its objective falls by less than this share between two looks, and ends below the second.
SETTLED = 1e-3
ENDED = 1e-6

log = logging.getLogger("hpt_mlflow")


class Probe(NamedTuple):
    """A linear classifier and how it was found.

    Attributes:
        regularisation: the C that was best on validation.
        validation_score: top-1, or mean AUROC of labels, on validation, in [0, 1].
        trace: iterations of its fit, and the head after them.
        converged: whether that fit had converged; if not, stopping early has regularised too.
    """

    head: LinearHead
    regularisation: float
    validation_score: float
    trace: tuple[tuple[int, LinearHead], ...]
    converged: bool


def fit_probe(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    validation_features: np.ndarray,
    validation_labels: np.ndarray,
    classes: int,
    device: torch.device | None = None,
    regularisations: Sequence[float] = REGULARISATIONS,
    iterations: int = 100,
) -> Probe:
    """Logistic regression for each of `regularisations`; returns the one that is best on validation.

    For a given C it minimises the sum of the cross-entropies plus |weight|^2 / (2 C), as scikit-learn's
    LogisticRegression does for three or more classes, in a limited number of iterations of L-BFGS: stopping early
    regularises too, and validation judges. Multi-label truth takes a binary cross-entropy per label.

    Args:
        train_features, validation_features: float32 (N, F) and (M, F).
        train_labels, validation_labels: int64 (N,) and (M,), or uint8 (N, classes) and (M, classes).
        device: where to compute, if it has the memory; the probe itself is returned on the CPU.
        regularisations: values of C, ascending, as each fit starts from the one before.
        iterations: most per fit.
    """
    given = train_features, train_labels, validation_features, validation_labels, classes
    try:
        return _fit_probe(*given, device, regularisations, iterations)
    except RuntimeError as error:
        if not lacks_memory(error):
            raise
        images = len(train_labels)
        log.warning("%s has no memory for a probe of %d images; it is fitted on the CPU instead", device, images)
    return _fit_probe(*given, None, regularisations, iterations)


def _fit_probe(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    validation_features: np.ndarray,
    validation_labels: np.ndarray,
    classes: int,
    device: torch.device | None,
    regularisations: Sequence[float],
    iterations: int,
) -> Probe:
    features = torch.from_numpy(train_features)
    mean, std = features.mean(dim=0), features.std(dim=0, correction=0)
    std = torch.where(std > 0, std, 1)
    standardised = ((features - mean) / std).to(device)
    multilabel = is_multilabel(train_labels)
    labels = torch.from_numpy(train_labels).to(device)
    weight = torch.zeros(features.shape[1], classes, device=device)
    bias = torch.zeros(classes, device=device)
    probes = []
    for regularisation in regularisations:
        with _flushed_denormals():
            looks, converged = _fit(standardised, labels, weight, bias, regularisation, iterations)
        trace = tuple((n, LinearHead(mean, std, w.cpu(), b.cpu(), multilabel)) for n, w, b in looks)
        head = trace[-1][1]
        score = primary_score(validation_labels, head.probabilities(validation_features))
        probes.append(Probe(head, regularisation, score, trace, converged))
        weight, bias = looks[-1][1:]
    queries, truth = torch.from_numpy(validation_features), torch.from_numpy(validation_labels)

    # Of probes with equal scores, or none, the one with the best probabilities.
    def rank(probe: Probe) -> tuple[float, float]:
        cross_entropy = float(_cross_entropy(probe.head.logits(queries), truth))
        return float(np.nan_to_num(probe.validation_score)), -cross_entropy

    return max(probes, key=rank)


@contextmanager
def _flushed_denormals() -> Iterator[None]:
    """Treat numbers below 1e-38 as 0: a confident softmax is full of them, and they are many times slower."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def _fit(
    features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor, regularisation: float, iterations: int
) -> tuple[list[tuple[int, Tensor, Tensor]], bool]:
    """L-BFGS from the given weight and bias: iterations, weight and bias at each look, and whether it converged."""
    weight, bias = weight.clone().requires_grad_(), bias.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([weight, bias], line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        optimizer.zero_grad()
        penalty = weight.square().sum() / (2 * regularisation * len(features))
        loss = _cross_entropy(features @ weight + bias, labels) + penalty
        loss.backward()
        return loss.detach()

    looks, before, fallen = [], 0, float("inf")
    last = float(objective())
    for look in (look for look in LOOKS if look <= iterations):
        # The optimiser keeps its curvature from one call to the next.
        group = optimizer.param_groups[0]
        group["max_iter"], group["max_eval"] = look - before, 2 * (look - before) + 1
        optimizer.step(objective)
        now = float(objective())
        fallen, last, before = (last - now) / max(abs(now), 1e-12), now, look
        looks.append((look, weight.detach().clone(), bias.detach().clone()))
        if fallen < ENDED:
            break
    return looks, fallen < SETTLED


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the images; of multi-label truth, each image has the sum over its labels."""
    if labels.ndim == 2:
        return F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="sum") / len(labels)
    return F.cross_entropy(logits, labels)
