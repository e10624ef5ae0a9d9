"""The paper's linear probe: SGD on augmented views through the frozen backbone (HPT, section 4.1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from hpt_mlflow.augment.in_batches import send
from hpt_mlflow.evaluation.labelled_views import TrainingViews
from hpt_mlflow.evaluation.protocols.base import OnStep, Outcome, Protocol
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
from hpt_mlflow.evaluation.task import Task


@dataclass(frozen=True)
class PaperProbeSettings:
    """How the head is trained; the defaults are the paper's (HPT, section 4.1, and its reference code).

    Attributes:
        steps: of SGD; the learning rate is divided by 10 at a third and at two thirds of them.
        batch_size: views per step.
        learning_rate: of the first third.
        momentum: of SGD; there is no weight decay.
        validate_every: steps between validations; the last step is validated too.
    """

    steps: int = 5000
    batch_size: int = 512
    learning_rate: float = 30.0
    momentum: float = 0.9
    validate_every: int = 100


class Paper(Protocol):
    """The paper's linear probe, with its number of steps unless another one is given."""

    def learn(self, backbone: nn.Module, task: Task, seed: int, steps: int | None, on_step: OnStep | None) -> Outcome:
        """See `Protocol.learn`."""
        return fit_paper_probe(backbone, task, _settings(steps), seed, on_step)

    def passes(self, images: int, steps: int | None) -> int:
        """See `Protocol.passes`."""
        settings = _settings(steps)
        return settings.steps * settings.batch_size


def _settings(steps: int | None) -> PaperProbeSettings:
    return PaperProbeSettings(steps) if steps else PaperProbeSettings()


def fit_paper_probe(
    backbone: nn.Module, task: Task, settings: PaperProbeSettings, seed: int = 0, on_step: OnStep | None = None
) -> Outcome:
    """Train a linear head on random crops and flips; keep the one that is best on validation, the first of several.

    Args:
        backbone: float32 (N, channels, size, size) to (N, F), on the reader's device; frozen, in evaluation mode,
            and left as it is.
        task: its images should keep `smallest_useful_side(image_size, CROP_SCALE)` pixels.
        seed: of the head, the order of the images, and their views.
        on_step: called after each step.

    Returns:
        The head, with a warning if the loss was no longer finite, which ends the training, or if validation never rose
        above chance and the head before training.

    Raises:
        HptError: too many images have become unreadable.
    """
    device, features, labels = task.reader.device, task.frozen_features(backbone), task.part_labels
    views = TrainingViews(task.reader, task.split.train, settings.batch_size, seed)
    head = new_head(features.train.shape[1], len(task.classes), seed).to(device)
    optimizer = torch.optim.SGD(head.parameters(), lr=settings.learning_rate, momentum=settings.momentum)
    truth = targets(labels.train, device)
    was_training = backbone.training
    backbone.eval()

    def validate(step: int) -> CurvePoint:
        trained = as_linear_head(head, is_multilabel(labels.train))
        parts = ((features.validation, labels.validation), (features.test, labels.test))
        return CurvePoint(step, *(score_of(trained, *part) for part in parts))

    best, best_point = as_linear_head(head, is_multilabel(labels.train)), validate(0)
    curve: list[CurvePoint] = []
    lost_at = None
    losses = torch.zeros((), device=device)
    for step, batch in enumerate(views.batches(settings.steps), start=1):
        # As validation and test are seen.
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=task.reader.precision == "bfloat16"):
            seen = backbone(batch.views).flatten(1).float()  # N x F
        loss = supervised_loss(head(seen), truth[send(batch.positions, device)])
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
            curve.append(validate(step))
            if curve[-1].validation_score > best_point.validation_score:
                best, best_point = as_linear_head(head, is_multilabel(labels.train)), curve[-1]
        if on_step:
            on_step(step, settings.steps)
    backbone.train(was_training)
    return Outcome(
        backbone,
        best,
        features,
        task,
        validation_score=best_point.validation_score,
        curve=curve,
        step=best_point.step,
        warning=why_not_converged(
            best_point.validation_score, best_point.step, labels.validation, lost_at, settings.learning_rate
        ),
    )
