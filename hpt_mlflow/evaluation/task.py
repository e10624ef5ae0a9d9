"""The three ways to learn labels from a backbone; each gives a classifier, and its answers on test."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from hpt_mlflow.data.split import Split
from hpt_mlflow.evaluation.feature_cache import kept_features
from hpt_mlflow.evaluation.features import FeatureReader
from hpt_mlflow.evaluation.head import LinearHead
from hpt_mlflow.evaluation.probe import fit_probe
from hpt_mlflow.evaluation.protocols.finetune import draw_labels, fine_tune, schedule_for
from hpt_mlflow.evaluation.protocols.paper import PaperProbe, PaperProbeSettings, fit_paper_probe
from hpt_mlflow.evaluation.scores import primary_score
from hpt_mlflow.evaluation.supervised import CurvePoint
from hpt_mlflow.models.backbone import batch_norms

OnStep = Callable[[int, int], None]
TRIAL_COLUMNS = ("schedule", "learning_rate", "iterations", "best_iteration", "validation_score", "reason")


class Parts(NamedTuple):
    """Of train, validation and test: features, float32 (N, F), or labels, int64 (N,) or uint8 (N, C)."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


@dataclass(frozen=True)
class Task:
    """A labelled dataset, split and checked, and how its images are read.

    Attributes:
        split: of the images that can be read.
        labels: of the whole dataset, int64 (N,) or uint8 (N, C).
        classes: names of the C classes or labels.
        content: contents of the images that can be read, int64 (N,), in the order of `reader.images.indices`.
        count: how many labels may be learned from, a number or a fraction of train; None for all of train.
    """

    reader: FeatureReader
    split: Split
    labels: np.ndarray
    classes: tuple[str, ...]
    content: np.ndarray
    count: int | float | None = None

    def with_drawn_labels(self, seed: int) -> Task:
        """The task with as many images of train as may be learned from, drawn from a seed."""
        train = self.split.train
        if self.count is None:
            return self
        drawn = draw_labels(self.labels[train], self.count, seed)
        return replace(self, split=replace(self.split, train=train[drawn]), count=None)

    def part_content(self, part: np.ndarray) -> np.ndarray:
        """The contents of the images of a part, int64 (N,)."""
        return self.content[np.searchsorted(self.reader.images.indices, part)]

    @property
    def part_labels(self) -> Parts:
        """The labels of each part."""
        return Parts(*(self.labels[part] for part in (self.split.train, self.split.validation, self.split.test)))

    def part_features(self, features: np.ndarray) -> Parts:
        """The features of each part, from those of all readable images."""
        positions = (
            np.searchsorted(self.reader.images.indices, part)
            for part in (self.split.train, self.split.validation, self.split.test)
        )
        return Parts(*(features[position] for position in positions))


@dataclass(frozen=True)
class Outcome:
    """A classifier and what it says on test.

    Attributes:
        backbone: that its head stands on: the given one, or a fine-tuned copy of it.
        features: of the centre crops of the three parts, by this backbone.
        task: with the labels that it has learned from.
        validation_score: top-1, or mean AUROC of labels, in [0, 1].
        probabilities: on test, float64 (N, C).
        curve: score on validation and test after so many steps of the training that was chosen.
        step: after how many of them the classifier was taken.
        chosen: what validation has chosen: regularisation, learning rate.
        reason: why the training did not converge, in words; empty where it did.
        trials: rows of what was tried, by column; empty where nothing else was.
    """

    backbone: nn.Module
    head: LinearHead
    features: Parts
    task: Task
    validation_score: float
    probabilities: np.ndarray
    curve: list[CurvePoint]
    step: int
    chosen: dict[str, float]
    reason: str
    trials: dict[str, list[object]] = field(default_factory=dict)

    @property
    def test_score(self) -> float:
        """Top-1, or mean AUROC of labels, on test, in [0, 1]."""
        return primary_score(self.task.part_labels.test, self.probabilities)


def learn_labels(
    protocol: str, backbone: nn.Module, task: Task, seed: int, steps: int | None = None, on_step: OnStep | None = None
) -> Outcome:
    """Learn the labels of train from a backbone, choose on validation, answer on test.

    Args:
        protocol: `fast`, `paper` or `finetune`.
        backbone: float32 (N, 3, size, size) to (N, F); put on the reader's device, otherwise left as it is.
        task: its labels are drawn from the seed.
        steps: of the training, where the protocol has any; None for the paper's.
        on_step: called after each step with its number, counted from 1, and their total.
    """
    backbone = backbone.to(task.reader.device).to(memory_format=torch.channels_last)
    task = task.with_drawn_labels(seed)
    if protocol == "finetune":
        return _finetune(backbone, task, seed, steps, on_step)
    features = task.part_features(kept_features(task.reader, backbone, task.content))
    if protocol == "paper":
        return _paper(backbone, features, task, seed, steps, on_step)
    return _fast(backbone, features, task)


def _fast(backbone: nn.Module, features: Parts, task: Task) -> Outcome:
    labels = task.part_labels
    probe = fit_probe(
        features.train, labels.train, features.validation, labels.validation, len(task.classes), task.reader.device
    )
    curve = [
        CurvePoint(
            iteration,
            primary_score(labels.validation, head.probabilities(features.validation)),
            primary_score(labels.test, head.probabilities(features.test)),
        )
        for iteration, head in probe.trace
    ]
    return Outcome(
        backbone,
        probe.head,
        features,
        task,
        probe.validation_score,
        probe.head.probabilities(features.test),
        curve,
        curve[-1].step,
        {"regularisation": probe.regularisation},
        "" if probe.converged else f"the probe was still getting better after {curve[-1].step} iterations",
    )


def _paper(
    backbone: nn.Module, features: Parts, task: Task, seed: int, steps: int | None, on_step: OnStep | None
) -> Outcome:
    probe = probe_by_paper(
        backbone, features, task, PaperProbeSettings(steps) if steps else PaperProbeSettings(), seed, on_step
    )
    return Outcome(
        backbone,
        probe.head,
        features,
        task,
        probe.validation_score,
        probe.head.probabilities(features.test),
        probe.curve,
        probe.step,
        {},
        probe.reason,
    )


def probe_by_paper(
    backbone: nn.Module, features: Parts, task: Task, settings: PaperProbeSettings, seed: int, on_step: OnStep | None
) -> PaperProbe:
    """The paper's probe of a task; `features` are the backbone's, of which validation and test are used."""
    labels = task.part_labels
    return fit_paper_probe(
        backbone,
        task.reader,
        task.split.train,
        labels.train,
        features.validation,
        labels.validation,
        features.test,
        labels.test,
        len(task.classes),
        settings,
        seed,
        on_step,
    )


def _finetune(backbone: nn.Module, task: Task, seed: int, steps: int | None, on_step: OnStep | None) -> Outcome:
    labels = task.part_labels
    tuned = fine_tune(
        backbone,
        task.reader,
        task.split.train,
        labels.train,
        task.split.validation,
        labels.validation,
        len(task.classes),
        schedule_for(steps),
        seed,
        on_step=on_step,
    )
    features = task.part_features(task.reader.features(tuned.backbone, task.reader.images.indices))
    trial = tuned.trial
    return Outcome(
        tuned.backbone,
        tuned.head,
        features,
        task,
        tuned.validation_score,
        tuned.head.probabilities(features.test),
        [CurvePoint(iteration, score, float("nan")) for iteration, score in trial.curve],
        trial.best_iteration,
        {"learning_rate": trial.learning_rate},
        tuned.reason,
        {name: [getattr(one, name) for one in tuned.trials] for name in TRIAL_COLUMNS},
    )


def with_refreshed_batch_norm(backbone: nn.Module, task: Task) -> nn.Module:
    """A copy of a backbone whose BatchNorm statistics are those of the images of train."""
    copied = copy.deepcopy(backbone).to(task.reader.device)
    task.reader.refresh_batch_norm(copied, task.split.train)
    # What learns on from here forgets these images again, as every other network does.
    for layer, given in zip(batch_norms(copied), batch_norms(backbone), strict=True):
        layer.momentum = given.momentum
    return copied
