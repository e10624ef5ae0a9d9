"""The linear probe as the paper trains it: by SGD on augmented views through the frozen backbone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from hpt_mlflow.evaluation.features import FeatureReader
from hpt_mlflow.evaluation.head import LinearHead
from hpt_mlflow.evaluation.labelled_views import TrainingViews
from hpt_mlflow.evaluation.scores import is_multilabel
from hpt_mlflow.evaluation.supervised import (
    CurvePoint,
    as_linear_head,
    learning_rate_at,
    new_head,
    score_of,
    supervised_loss,
    targets,
    why_not_converged,
)


@dataclass(frozen=True)
class PaperProbeSettings:
    """How the head is trained; the defaults are the paper's (HPT, section 4.1, and its reference code).

    Attributes:
        steps: of SGD; the learning rate is divided by 10 at a third and at two thirds of them.
        batch_size: views a step.
        learning_rate: of the first third.
        momentum: of SGD; there is no weight decay.
        validate_every: steps between validations; the last step is validated too.
    """

    steps: int = 5000
    batch_size: int = 512
    learning_rate: float = 30.0
    momentum: float = 0.9
    validate_every: int = 100


class PaperProbe(NamedTuple):
    """A trained head, and how it came to be; scores are primary scores, in [0, 1].

    Attributes:
        head: of the step that was best on validation (the first of several), on the CPU.
        step: which one that was; 0 where no step was better than the head as it was initialised.
        validation_score, test_score: of that step.
        curve: every validation, in order.
        reason: why it did not converge, in words: the loss was no longer finite, or validation never rose above chance
            and the head before training; empty where it did.
    """

    head: LinearHead
    step: int
    validation_score: float
    test_score: float
    curve: list[CurvePoint]
    reason: str

    @property
    def converged(self) -> bool:
        """Whether there is no reason why not."""
        return not self.reason


def fit_paper_probe(
    backbone: nn.Module,
    reader: FeatureReader,
    train: np.ndarray,
    train_labels: np.ndarray,
    validation_features: np.ndarray,
    validation_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    classes: int,
    settings: PaperProbeSettings = PaperProbeSettings(),
    seed: int = 0,
    on_step: Callable[[int, int], None] | None = None,
) -> PaperProbe:
    """Train a linear head on random crops and flips through a frozen backbone (HPT, section 4.1).

    Test plays no part in the choice: its figures are only written down beside those of validation.

    Args:
        backbone: float32 (N, 3, size, size) to (N, F); put on the reader's device, used in evaluation mode, unchanged.
        reader: says what images are read, their size, statistics, device and threads. Its images should keep
            `smallest_useful_side(image_size, CROP_SCALE)` pixels.
        train: int64 (N,), indices of the images to train on.
        train_labels: of those images, int64 (N,) or uint8 (N, C).
        validation_features, test_features: float32 (M, F), of centre crops, by the same backbone.
        validation_labels, test_labels: of those features, int64 (M,) or uint8 (M, C).
        classes: how many classes or labels there are, C.
        seed: of the head, the order of the images, and their views.
        on_step: called after each step with its number, counted from 1, and their total.

    Returns:
        The best head by validation. A loss that is not finite ends the training early; see `converged`.

    Raises:
        HptError: too many images cannot be read any more.
    """
    device, multilabel = reader.device, is_multilabel(train_labels)
    views = TrainingViews(
        reader.images, train, reader.image_size, reader.statistics, device, settings.batch_size, seed, reader.threads
    )
    head = new_head(validation_features.shape[1], classes, seed).to(device)
    optimizer = torch.optim.SGD(head.parameters(), lr=settings.learning_rate, momentum=settings.momentum)
    truth = targets(train_labels, device)
    training = backbone.training
    backbone.to(device).to(memory_format=torch.channels_last).eval()

    best = as_linear_head(head, multilabel)
    best_point = CurvePoint(
        0, score_of(best, validation_features, validation_labels), score_of(best, test_features, test_labels)
    )
    curve: list[CurvePoint] = []
    lost_at = None
    losses = torch.zeros((), device=device)
    for step, batch in enumerate(views.batches(settings.steps), start=1):
        with torch.no_grad():
            features = backbone(batch.views).flatten(1).float()  # N x F
        loss = supervised_loss(head(features), truth[torch.from_numpy(batch.positions).to(device)])
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(settings.learning_rate, step - 1, settings.steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses += loss.detach()
        if step % settings.validate_every == 0 or step == settings.steps:
            if not (losses.isfinite() and head.weight.isfinite().all()):
                lost_at = step
                break
            now = as_linear_head(head, multilabel)
            point = CurvePoint(
                step, score_of(now, validation_features, validation_labels), score_of(now, test_features, test_labels)
            )
            curve.append(point)
            if point.validation_score > best_point.validation_score:
                best, best_point = now, point
        if on_step:
            on_step(step, settings.steps)
    backbone.train(training)
    reason = why_not_converged(
        best_point.validation_score, best_point.step, validation_labels, lost_at, settings.learning_rate
    )
    return PaperProbe(best, *best_point, curve, reason)
