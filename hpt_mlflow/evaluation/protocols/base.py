"""What a protocol of evaluation is: it learns labels from a backbone, and returns a classifier."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import nn

from hpt_mlflow.evaluation.head import LinearHead
from hpt_mlflow.evaluation.protocols import load_protocol
from hpt_mlflow.evaluation.scores import primary_score
from hpt_mlflow.evaluation.supervised import CurvePoint
from hpt_mlflow.evaluation.task import Parts, Task

# Called after each step with its number, counted from 1, and the total.
OnStep = Callable[[int, int], None]


@dataclass(frozen=True)
class Outcome:
    """A classifier, and how it was found. Scores are primary scores (see `scores.primary_name`), in [0, 1].

    Attributes:
        backbone: the given one, or a fine-tuned copy of it.
        head: on the features of this backbone; on the CPU.
        features: of the centre crops of the three parts, by this backbone.
        task: with the labels that were learned from.
        validation_score: of the classifier.
        curve: scores on validation and test during the training.
        step: the step of the curve at which the classifier was taken; 0 for before training.
        hyperparameters: chosen on validation, such as the regularisation.
        warning: why the training did not converge; empty if it did.
        trials: the trainings that were compared, as columns of a table; empty if there was only one.
    """

    backbone: nn.Module
    head: LinearHead
    features: Parts
    task: Task
    validation_score: float
    curve: list[CurvePoint]
    step: int
    hyperparameters: dict[str, float] = field(default_factory=dict)
    warning: str = ""
    trials: dict[str, list[object]] = field(default_factory=dict)

    @cached_property
    def probabilities(self) -> np.ndarray:
        """Of the classes or labels of the test images, float64 (N, C)."""
        return self.head.probabilities(self.features.test)

    @property
    def test_score(self) -> float:
        """Score of the classifier on test."""
        return primary_score(self.task.part_labels.test, self.probabilities)


class Protocol(ABC):
    """A way to learn labels from a backbone. What others must know of it is in its `Registration`."""

    @abstractmethod
    def learn(self, backbone: nn.Module, task: Task, seed: int, steps: int | None, on_step: OnStep | None) -> Outcome:
        """Learn from train, choose on validation, and answer on test.

        Args:
            backbone: float32 (N, channels, size, size) to (N, F), on the reader's device; to be left as it is.
            task: its train part holds just the images whose labels may be used.
            seed: the same arguments and seed give the same outcome.
            steps: length of a training; None for the protocol's default, or if it has no steps.
            on_step: to be called after each step.
        """

    def passes(self, images: int, steps: int | None) -> int:
        """How often an image passes through the network while learning, a backward pass counted as two.

        Computing the features of each image once is not included.

        Args:
            images: number of labelled images to learn from.
            steps: as for `learn`.
        """
        return 0


def learn_labels(
    protocol: str, backbone: nn.Module, task: Task, seed: int, steps: int | None = None, on_step: OnStep | None = None
) -> Outcome:
    """Learn labels from a backbone by a registered protocol; the arguments are those of `Protocol.learn`.

    Args:
        backbone: is moved to the reader's device.
        task: its labels are drawn from the seed.

    Raises:
        HptError: the labels cannot be drawn, or too many images have become unreadable.
    """
    backbone = backbone.to(task.reader.device).to(memory_format=torch.channels_last)
    return load_protocol(protocol).learn(backbone, task.with_drawn_labels(seed), seed, steps, on_step)
