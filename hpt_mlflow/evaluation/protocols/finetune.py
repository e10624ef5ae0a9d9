"""Semi-supervised learning: the whole network is fine-tuned on few labels (HPT, section 4.2)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from hpt_mlflow.augment.in_batches import send
from hpt_mlflow.evaluation.head import LinearHead
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
from hpt_mlflow.models.randomness import seeded

# How often an image passes through the network in a step: forward, and backward counted as two.
PASSES = 3


class Schedule(NamedTuple):
    """One training of the grid.

    Attributes:
        name: as people call it: `2500 iterations` or `90 epochs`.
        learning_rate: of the backbone, in the first third.
        iterations: its length, in whole steps of the optimiser.
    """

    name: str
    learning_rate: float
    iterations: int


@dataclass(frozen=True)
class FineTuneSettings:
    """The grid of trainings; the defaults are the paper's (HPT, section 4.2, and its reference code).

    An iteration is one batch forward and backward; weights change once per `accumulate` iterations.

    Attributes:
        iterations: length of the first schedule; None leaves it out.
        epochs: length of the second, in passes over the labelled images; None leaves it out.
        learning_rates: of the backbone; each is tried with each schedule, and divided by 10 at a third and at two
            thirds of it.
        head_multiplier: how many times faster the head learns.
        batch_size: views per iteration; of fewer labelled images, all of them.
        accumulate: iterations whose gradients are averaged.
        momentum: of SGD; there is no weight decay.
        validations: how often each training is validated, at even intervals; the best checkpoint of all is kept.
    """

    iterations: int | None = 2500
    epochs: int | None = 90
    learning_rates: tuple[float, ...] = (0.01, 0.001)
    head_multiplier: float = 100.0
    batch_size: int = 64
    accumulate: int = 4
    momentum: float = 0.9
    validations: int = 10

    def batch_size_for(self, images: int) -> int:
        """Views per iteration when learning from a number of images."""
        # BatchNorm needs two images where maps have a single pixel.
        return max(2, min(self.batch_size, images))

    def grid(self, images: int) -> list[Schedule]:
        """The trainings for a number of labelled images, schedule by schedule."""
        lengths: list[tuple[str, float]] = []
        if self.iterations is not None:
            lengths.append((f"{self.iterations} iterations", self.iterations))
        if self.epochs is not None:
            lengths.append((f"{self.epochs} epochs", self.epochs * images / self.batch_size_for(images)))
        return [
            Schedule(name, learning_rate, max(1, round(length / self.accumulate)) * self.accumulate)
            for name, length in lengths
            for learning_rate in self.learning_rates
        ]

    def validated_at(self, iterations: int) -> set[int]:
        """The iterations of a training after which it is validated: whole steps of the optimiser, and the last."""
        shares = [iterations * i / self.validations / self.accumulate for i in range(1, self.validations)]
        return {max(1, round(updates)) * self.accumulate for updates in shares} | {iterations}


class Finetune(Protocol):
    """The paper's grid of trainings of all weights; a number of steps replaces both of its schedules."""

    def learn(self, backbone: nn.Module, task: Task, seed: int, steps: int | None, on_step: OnStep | None) -> Outcome:
        """See `Protocol.learn`."""
        return fine_tune(backbone, task, _settings(steps), seed, on_step)

    def passes(self, images: int, steps: int | None) -> int:
        """See `Protocol.passes`."""
        settings = _settings(steps)
        iterations = sum(schedule.iterations for schedule in settings.grid(images))
        return PASSES * iterations * settings.batch_size_for(images)


def _settings(steps: int | None) -> FineTuneSettings:
    return FineTuneSettings(iterations=steps, epochs=None) if steps else FineTuneSettings()


class _Checkpoint(NamedTuple):
    """Weights of the backbone and a head.

    Attributes:
        iteration: of the training; 0 for the given backbone with an initialised head.
        score: the primary score on validation, in [0, 1].
    """

    iteration: int
    score: float
    weights: dict[str, Tensor]
    head: LinearHead


class _Trial(NamedTuple):
    """One training: its best checkpoint, its validations, and why it did not converge, or nothing."""

    schedule: Schedule
    best: _Checkpoint
    curve: list[CurvePoint]
    warning: str


def fine_tune(
    backbone: nn.Module,
    task: Task,
    settings: FineTuneSettings = FineTuneSettings(),
    seed: int = 0,
    on_step: OnStep | None = None,
) -> Outcome:
    """Fine-tune copies of a backbone with a new linear head, for each schedule and learning rate; keep the best.

    All layers learn, whatever was frozen before; BatchNorm is in training mode. Images are augmented by random crops
    and flips.

    Args:
        backbone: float32 (N, channels, size, size) to (N, F); left as it is.
        task: its images should keep `smallest_useful_side(image_size, CROP_SCALE)` pixels.
        seed: of the head, the order of the images, and their views; the same for the whole grid.
        on_step: called after each iteration with its number, counted from 1 over the whole grid, and their total.

    Returns:
        The best checkpoint by validation; the given weights with an initialised head if no training improves on them.

    Raises:
        HptError: too many images have become unreadable.
    """
    grid = settings.grid(len(task.split.train))
    network = copy.deepcopy(backbone).to(task.reader.device).to(memory_format=torch.channels_last).requires_grad_(True)
    features = task.reader.features(network, task.split.validation)
    head = _served(new_head(features.shape[1], len(task.classes), seed), task)
    start = _Checkpoint(0, score_of(head, features, task.part_labels.validation), _weights(network), head)
    best: _Trial | None = None
    rows = []
    done, total = 0, sum(schedule.iterations for schedule in grid)
    for schedule in grid:
        trial = _run_trial(network, start, task, schedule, settings, seed, _of_grid(on_step, done, total))
        rows.append((*schedule, trial.best.iteration, trial.best.score, trial.warning))
        if best is None or trial.best.score > best.best.score:
            best = trial
        done += schedule.iterations
    assert best is not None, "the grid is not empty"
    network.load_state_dict(best.best.weights)
    network.eval()
    columns = ("schedule", "learning_rate", "iterations", "best_iteration", "validation_score", "reason")
    return Outcome(
        network,
        best.best.head,
        task.features(network),
        task,
        validation_score=best.best.score,
        curve=best.curve,
        step=best.best.iteration,
        hyperparameters={"learning_rate": best.schedule.learning_rate},
        warning=best.warning,
        trials={name: list(column) for name, column in zip(columns, zip(*rows, strict=True), strict=True)},
    )


def _run_trial(
    network: nn.Module,
    start: _Checkpoint,
    task: Task,
    schedule: Schedule,
    settings: FineTuneSettings,
    seed: int,
    on_iteration: Callable[[int], None],
) -> _Trial:
    """Train a network from the start, in place, and validate it at even intervals."""
    network.load_state_dict(start.weights)
    head = new_head(len(start.head.weight), len(task.classes), seed).to(task.reader.device)
    labels = task.part_labels.validation
    best, curve, lost_at = start, [], None
    due = settings.validated_at(schedule.iterations)
    for iteration, losses in _train(network, head, task, schedule, settings, seed):
        on_iteration(iteration)
        if iteration not in due:
            continue
        if not losses.isfinite():
            lost_at = iteration
            break
        trained = _served(head, task)
        score = score_of(trained, task.reader.features(network, task.split.validation), labels)
        curve.append(CurvePoint(iteration, score, float("nan")))
        if score > best.score:
            best = _Checkpoint(iteration, score, _weights(network), trained)
    warning = why_not_converged(best.score, best.iteration, labels, lost_at, schedule.learning_rate)
    return _Trial(schedule, best, curve, warning)


def _train(
    network: nn.Module, head: nn.Linear, task: Task, schedule: Schedule, settings: FineTuneSettings, seed: int
) -> Iterator[tuple[int, Tensor]]:
    """Train network and head in place; yields each finished iteration, counted from 1, and the sum of the losses."""
    device, train = task.reader.device, task.split.train
    views = TrainingViews(task.reader, train, settings.batch_size_for(len(train)), seed)
    truth = targets(task.part_labels.train, device)
    groups = [
        {"params": list(network.parameters()), "multiplier": 1.0},
        {"params": list(head.parameters()), "multiplier": settings.head_multiplier},
    ]
    optimizer = torch.optim.SGD(groups, lr=schedule.learning_rate, momentum=settings.momentum)
    losses = torch.zeros((), device=device)
    for iteration, batch in enumerate(views.batches(schedule.iterations), start=1):
        network.train()
        # Unreadable images may leave one alone, whose variance BatchNorm may not be able to measure.
        if len(batch.positions) > 1:
            with seeded(int(np.random.default_rng((seed, iteration)).integers(2**62)), device):
                features = network(batch.views).flatten(1)
            loss = supervised_loss(head(features.float()), truth[send(batch.positions, device)])
            (loss / settings.accumulate).backward()
            losses += loss.detach()
        if iteration % settings.accumulate == 0:
            rate = learning_rate_at(schedule.learning_rate, iteration - 1, schedule.iterations)
            for group in optimizer.param_groups:
                group["lr"] = rate * group["multiplier"]
            optimizer.step()
            optimizer.zero_grad()
        yield iteration, losses


def _of_grid(on_step: OnStep | None, done: int, total: int) -> Callable[[int], None]:
    """Reports an iteration of one training as an iteration of the whole grid."""
    return lambda iteration: on_step(done + iteration, total) if on_step else None


def _served(head: nn.Linear, task: Task) -> LinearHead:
    return as_linear_head(head, is_multilabel(task.labels))


def _weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
