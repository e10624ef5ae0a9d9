"""Semi-supervised learning: the whole network is fine-tuned on few labels (HPT, section 4.2)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from hpt_mlflow.errors import HptError
from hpt_mlflow.evaluation.drawing import draw_labels
from hpt_mlflow.evaluation.features import FeatureReader
from hpt_mlflow.evaluation.head import LinearHead
from hpt_mlflow.evaluation.labelled_views import TrainingViews
from hpt_mlflow.evaluation.scores import is_multilabel
from hpt_mlflow.evaluation.supervised import (
    as_linear_head,
    learning_rate_at,
    new_head,
    score_of,
    supervised_loss,
    targets,
    why_not_converged,
)
from hpt_mlflow.models.randomness import seeded

__all__ = ["FineTuneSettings", "FineTuned", "Trial", "count_views", "draw_labels", "fine_tune", "schedule_for"]


@dataclass(frozen=True)
class FineTuneSettings:
    """The grid of trainings; the defaults are the paper's (HPT, section 4.2, and its reference code).

    An iteration is one batch forward and backward; weights change once in `accumulate` iterations.

    Attributes:
        iterations: length of the first schedule; None leaves it out.
        epochs: length of the second, in passes over the labelled images; None leaves it out.
        learning_rates: of the backbone; each is tried with each schedule, and divided by 10 at a third and at two
            thirds of it.
        head_multiplier: the head learns so many times faster.
        batch_size: views an iteration; of fewer labelled images, all of them.
        accumulate: iterations whose gradients are averaged.
        momentum: of SGD; there is no weight decay.
        validations: how often each training is validated, at even intervals; the best of all is kept.
    """

    iterations: int | None = 2500
    epochs: int | None = 90
    learning_rates: tuple[float, ...] = (0.01, 0.001)
    head_multiplier: float = 100.0
    batch_size: int = 64
    accumulate: int = 4
    momentum: float = 0.9
    validations: int = 10


def schedule_for(steps: int | None) -> FineTuneSettings:
    """The paper's grid; a length that the user gives takes the place of both of its schedules."""
    return FineTuneSettings(iterations=steps, epochs=None) if steps else FineTuneSettings()


def count_views(settings: FineTuneSettings, images: int) -> int:
    """How many views the whole grid learns from, of so many labelled images."""
    batch_size = _batch_size(settings, images)
    iterations = sum(length for _, length in _schedules(settings, images, batch_size))
    return len(settings.learning_rates) * iterations * batch_size


class Trial(NamedTuple):
    """One training of the grid; scores are primary scores, in [0, 1].

    Attributes:
        schedule: as people call it: `2500 iterations` or `90 epochs`.
        learning_rate: of the backbone, in the first third.
        iterations: length of the schedule, in whole steps of the optimiser.
        best_iteration: after which it was best on validation; 0 where it never got better than its initialised head.
        validation_score: then.
        curve: iteration and validation score of every validation.
        reason: why it did not converge, in words; empty where it did.
    """

    schedule: str
    learning_rate: float
    iterations: int
    best_iteration: int
    validation_score: float
    curve: list[tuple[int, float]]
    reason: str


class FineTuned(NamedTuple):
    """The best network of the grid by validation.

    Attributes:
        backbone: a fine-tuned copy, on the device, in evaluation mode.
        head: on the CPU; a plain one.
        validation_score: the primary score of the two, in [0, 1].
        trial: the training that they are from; its curve, schedule and learning rate.
        trials: the whole grid, schedules in the order of the settings.
    """

    backbone: nn.Module
    head: LinearHead
    validation_score: float
    trial: Trial
    trials: list[Trial]

    @property
    def reason(self) -> str:
        """Why the best training did not converge, in words; empty where it did."""
        return self.trial.reason

    @property
    def converged(self) -> bool:
        """Whether there is no reason why not."""
        return not self.reason


class _Kept(NamedTuple):
    """A checkpoint: weights of the backbone, and the head."""

    weights: dict[str, Tensor]
    head: LinearHead


def fine_tune(
    backbone: nn.Module,
    reader: FeatureReader,
    train: np.ndarray,
    train_labels: np.ndarray,
    validation: np.ndarray,
    validation_labels: np.ndarray,
    classes: int,
    settings: FineTuneSettings = FineTuneSettings(),
    seed: int = 0,
    autocast: torch.dtype | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> FineTuned:
    """Fine-tune copies of a backbone with a new linear head, for each schedule and learning rate; keep the best.

    All layers learn, whatever was frozen before; BatchNorm is in training mode. Images are augmented by random crops
    and flips.

    Args:
        backbone: float32 (N, 3, size, size) to (N, F); left as it is.
        reader: says what images are read, their size, statistics, device and threads. Its images should keep
            `smallest_useful_side(image_size, CROP_SCALE)` pixels.
        train: int64 (N,), indices of the images whose labels are used, such as those of `draw_labels`.
        train_labels: of those images, int64 (N,) or uint8 (N, C).
        validation: int64 (M,), indices of the images to choose by, as centre crops.
        validation_labels: of those images.
        classes: how many classes or labels there are, C.
        seed: of the head, the order of the images, and their views; the same for all of the grid.
        autocast: lower precision of the forward pass, such as bfloat16; None for float32. Gradients are not scaled, so
            float16 will not do.
        on_step: called after each iteration with its number, counted from 1 over the whole grid, and their total.

    Raises:
        HptError: the grid is empty, or too many images cannot be read any more.
    """
    batch_size = _batch_size(settings, len(train))
    grid = [
        (name, length, learning_rate)
        for name, length in _schedules(settings, len(train), batch_size)
        for learning_rate in settings.learning_rates
    ]
    if not grid:
        raise HptError("fine-tuning: no schedule or no learning rate is given; give iterations or epochs, and a rate")
    network = copy.deepcopy(backbone).to(reader.device).to(memory_format=torch.channels_last).requires_grad_(True)
    start = _copy_of(network)
    features = reader.features(network, validation)
    untrained = as_linear_head(new_head(features.shape[1], classes, seed), is_multilabel(train_labels))
    # The first checkpoint is the untrained one: every training has one to be compared with, and to fall back on.
    first_score = score_of(untrained, features, validation_labels)
    best, best_trial, trials = _Kept(start, untrained), None, []
    done, total = 0, sum(length for _, length, _ in grid)
    for name, length, learning_rate in grid:
        network.load_state_dict(start)
        head = new_head(features.shape[1], classes, seed).to(reader.device)
        trial = Trial(name, learning_rate, length, 0, first_score, [], "")
        kept, lost_at = None, None
        due = {round(length * i / settings.validations / settings.accumulate) for i in range(1, settings.validations)}
        due = {max(1, updates) * settings.accumulate for updates in due} | {length}
        views = TrainingViews(
            reader.images, train, reader.image_size, reader.statistics, reader.device, batch_size, seed, reader.threads
        )
        steps = _train(network, head, views, train_labels, length, learning_rate, settings, autocast, seed)
        for iteration, loss in steps:
            if on_step:
                on_step(done + iteration, total)
            if iteration not in due:
                continue
            if not loss.isfinite():
                lost_at = iteration
                break
            now = as_linear_head(head, untrained.multilabel)
            score = score_of(now, reader.features(network, validation), validation_labels)
            trial.curve.append((iteration, score))
            if score > trial.validation_score:
                kept = _Kept(_copy_of(network), now)
                trial = trial._replace(best_iteration=iteration, validation_score=score)
        done += length
        reason = why_not_converged(
            trial.validation_score, trial.best_iteration, validation_labels, lost_at, learning_rate
        )
        trials.append(trial._replace(reason=reason))
        if best_trial is None or trial.validation_score > best_trial.validation_score:
            best_trial = trials[-1]
            best = kept or best
    assert best_trial is not None, "the grid is not empty"
    network.load_state_dict(best.weights)
    return FineTuned(
        backbone=network.eval(),
        head=best.head,
        validation_score=best_trial.validation_score,
        trial=best_trial,
        trials=trials,
    )


def _train(
    network: nn.Module,
    head: nn.Linear,
    views: TrainingViews,
    train_labels: np.ndarray,
    iterations: int,
    learning_rate: float,
    settings: FineTuneSettings,
    autocast: torch.dtype | None,
    seed: int,
) -> Iterator[tuple[int, Tensor]]:
    """Train network and head in place; gives each iteration that was done, counted from 1, and the losses' sum."""
    device = views.device
    truth = targets(train_labels, device)
    groups = [
        {"params": list(network.parameters()), "multiplier": 1.0},
        {"params": list(head.parameters()), "multiplier": settings.head_multiplier},
    ]
    optimizer = torch.optim.SGD(groups, lr=learning_rate, momentum=settings.momentum)
    losses = torch.zeros((), device=device)
    for iteration, batch in enumerate(views.batches(iterations), start=1):
        network.train()
        # Unreadable images may leave one alone, of which BatchNorm may find no variance.
        if len(batch.positions) > 1:
            drawn = int(np.random.default_rng((seed, iteration)).integers(2**62))
            with (
                seeded(drawn, device),
                torch.autocast(device.type, autocast, enabled=autocast is not None),
            ):
                features = network(batch.views).flatten(1)
            logits = head(features.float())
            loss = supervised_loss(logits, truth[torch.from_numpy(batch.positions).to(device)])
            (loss / settings.accumulate).backward()
            losses += loss.detach()
        if iteration % settings.accumulate == 0:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(learning_rate, iteration - 1, iterations) * group["multiplier"]
            optimizer.step()
            optimizer.zero_grad()
        yield iteration, losses


def _batch_size(settings: FineTuneSettings, images: int) -> int:
    # BatchNorm needs two images where maps have a single pixel.
    return max(2, min(settings.batch_size, images))


def _schedules(settings: FineTuneSettings, images: int, batch_size: int) -> list[tuple[str, int]]:
    """Name and length in iterations, in whole steps of the optimiser, of the schedules that are asked for."""
    lengths = []
    if settings.iterations is not None:
        lengths.append((f"{settings.iterations} iterations", float(settings.iterations)))
    if settings.epochs is not None:
        lengths.append((f"{settings.epochs} epochs", settings.epochs * images / batch_size))
    every = settings.accumulate
    return [(name, max(1, round(length / every)) * every) for name, length in lengths]


def _copy_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
