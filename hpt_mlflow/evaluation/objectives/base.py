"""Judging frozen backbones during a search or a training: always by the same images, so that scores can be compared."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
from torch import nn

from hpt_mlflow.data.images import Images
from hpt_mlflow.data.split import VALIDATION_SHARE, Split
from hpt_mlflow.errors import HptError
from hpt_mlflow.evaluation.features import FeatureReader
from hpt_mlflow.evaluation.objectives import OBJECTIVES, load_judge
from hpt_mlflow.evaluation.scores import is_multilabel, primary_score
from hpt_mlflow.models.randomness import seeded

# Most examples of a judge: a search calls it again and again.
TRAIN_EXAMPLES = 5000
VALIDATION_EXAMPLES = 2000
FEWEST_IMAGES = 2
# With fewer validation examples, the noise of a score, 1.6 points and more, is as large as the differences between
# subsets. Then every image is judged in its turn, by cross-validation.
ENOUGH_EXAMPLES = 1000
FOLDS = 5
# Another search on the same dataset and split judges by the same images.
SEED = 0


class Examples(NamedTuple):
    """Features, float32 (N, F), their targets, int64 (N,) or uint8 (N, C), and the indices of their images."""

    features: np.ndarray
    labels: np.ndarray
    indices: np.ndarray

    def of(self, part: np.ndarray) -> Examples:
        """The examples of some images."""
        inside = np.isin(self.indices, part)
        return Examples(self.features[inside], self.labels[inside], self.indices[inside])


@dataclass(frozen=True)
class Judge(ABC):
    """Scores frozen backbones by the same images. `make_judge` makes one.

    Attributes:
        reader: its images hold all that are in the rounds.
        rounds: indices of the images to learn from, and of those to judge by; int64, ascending. With more than one
            round, each image is judged in one of them: a cross-validation.
        labels: of the whole dataset, int64 (N,) or uint8 (N, C), or None if they are not needed.
        examples_per_image: how many examples an image makes.
        chance: the score of features that say nothing.
    """

    reader: FeatureReader
    rounds: tuple[tuple[np.ndarray, np.ndarray], ...]
    labels: np.ndarray | None
    examples_per_image: ClassVar[int] = 1
    chance: ClassVar[float] = 0.0

    @abstractmethod
    def score_of(self, examples: Examples) -> float:
        """How good the features of all images are; more is better.

        Args:
            examples: those of all rounds; their features are finite.
        """

    def examples(self, backbone: nn.Module, part: np.ndarray) -> Examples:
        """Features and targets of the images at `part`; those of unreadable images are not used."""
        assert self.labels is not None
        return Examples(self.reader.features(backbone, part), self.labels[part], part)

    def score(self, backbone: nn.Module) -> float:
        """How good the features of a backbone on the reader's device are; more is better.

        The backbone is judged in evaluation mode and left exactly as it is, as are torch's random numbers: its training
        may continue. Images that have become unreadable are reported to the reader's images and left out.

        Returns:
            NaN if features are not finite: the backbone has diverged.

        Raises:
            HptError: too many images have become unreadable.
        """
        part = np.unique(np.concatenate([part for both in self.rounds for part in both]))
        # A layer may be random in evaluation mode too.
        with seeded(0, self.reader.device):
            examples = self.examples(backbone, part)
        examples = examples.of(np.setdiff1d(part, list(self.reader.images.unreadable)))
        return self.score_of(examples) if np.isfinite(examples.features).all() else float("nan")

    @property
    def noise(self) -> float:
        """By how much scores of equally good backbones may well differ."""
        return 0.0


class PredictionJudge(Judge):
    """Scores features by what can be predicted from them, in [0, 1]."""

    @property
    def noise(self) -> float:
        """The standard error of a share of the judged examples, which is largest for one half."""
        judged = self.examples_per_image * sum(len(validation) for _, validation in self.rounds)
        return 0.5 / math.sqrt(judged)

    @abstractmethod
    def answer(self, known: Examples, queries: Examples, classes: int) -> np.ndarray:
        """Scores of the classes or labels for the queries, float32 (M, classes), learned from the known examples."""

    def score_of(self, examples: Examples) -> float:
        """The primary score (see `scores.primary_name`) of the answers of all rounds, in [0, 1]."""
        classes = examples.labels.shape[1] if is_multilabel(examples.labels) else int(examples.labels.max()) + 1
        answers, truth = [], []
        for train, validation in self.rounds:
            known, queries = examples.of(train), examples.of(validation)
            # All images of a small round may have become unreadable.
            if len(known.labels) and len(queries.labels):
                answers.append(self.answer(known, queries, classes))
                truth.append(queries.labels)
        return primary_score(np.concatenate(truth), np.concatenate(answers))


def make_judge(
    objective: str, reader: FeatureReader, split: Split, labels: np.ndarray | None, most: int | None = None
) -> Judge:
    """Choose the images to judge by; they are the same for the same dataset and split, and never of test.

    They are the readable images of train and validation, or `TRAIN_EXAMPLES` and `VALIDATION_EXAMPLES` drawn from them.
    Without validation images, as for an unlabelled dataset, an objective that needs no labels holds out a fifth of
    train, by whole groups if there are any. With fewer validation examples than `ENOUGH_EXAMPLES`, train and validation
    together are cross-validated instead, again by whole groups.

    Args:
        objective: one that has a judge.
        labels: of the whole dataset, int64 (N,) or uint8 (N, C), or None.
        most: examples of both parts together; None for no other limit.

    Raises:
        HptError: the objective needs labels and there are none, or there are too few images to judge by.
    """
    judge, needs_labels = load_judge(objective), OBJECTIVES[objective].needs_labels
    images, name = reader.images, reader.images.dataset.name
    if needs_labels and labels is None:
        raise _refusal(f"{objective} needs labels, and {name} has none", "use rotation, or give labels")
    train, validation = split.train, split.validation
    if not needs_labels and not len(validation):
        train, validation = _hold_out(images, train)
    for_train, for_validation = TRAIN_EXAMPLES, VALIDATION_EXAMPLES
    if most is not None:
        for_train, for_validation = min(for_train, most * 2 // 3), min(for_validation, most // 3)
    train = _drawn(images, train, for_train // judge.examples_per_image)
    validation = _drawn(images, validation, for_validation // judge.examples_per_image)
    for part, indices in (("train", train), ("validation", validation)):
        if len(indices) < FEWEST_IMAGES:
            needed = f"{FEWEST_IMAGES} or more readable images in {part}"
            raise _refusal(f"{objective} needs {needed}, and {name} has {len(indices)}", "give more images")
    if needs_labels and labels is not None and (labels[validation] == labels[validation[0]]).all():
        needed = f"validation images whose labels differ, and the {len(validation)} of {name} all have the same"
        raise _refusal(f"{objective} needs {needed}", "use rotation, or give more images")
    enough = judge.examples_per_image * len(validation) >= ENOUGH_EXAMPLES
    folds = () if enough else _folds(images, train, validation, labels)
    return judge(reader, folds or ((train, validation),), labels)


def _refusal(problem: str, remedy: str) -> HptError:
    return HptError(problem, remedy, setting="objective")


def _hold_out(images: Images, train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rest of train, and a fifth of it: of its groups, or of its images if they have none."""
    groups = train if images.dataset.groups is None else images.dataset.groups[train]
    shuffled = np.random.default_rng(SEED).permutation(np.unique(groups))
    held_out = np.isin(groups, shuffled[: max(1, round(VALIDATION_SHARE * len(shuffled)))])
    return train[~held_out], train[held_out]


def _folds(
    images: Images, train: np.ndarray, validation: np.ndarray, labels: np.ndarray | None
) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Rounds of a cross-validation. Groups are not divided, and classes are spread evenly as far as possible."""
    both = np.union1d(train, validation)
    shuffled = np.random.default_rng(SEED).permutation(both)
    if labels is not None and not is_multilabel(labels):
        shuffled = shuffled[np.argsort(labels[shuffled], kind="stable")]
    groups = np.arange(len(images.dataset)) if images.dataset.groups is None else images.dataset.groups
    # Groups are numbered in the order of their first images.
    _, first, number = np.unique(groups[shuffled], return_index=True, return_inverse=True)
    fold = np.argsort(np.argsort(first))[number] % FOLDS
    parts = [np.sort(shuffled[fold == i]) for i in range(FOLDS)]
    return tuple((np.setdiff1d(both, part), part) for part in parts if 0 < len(part) < len(both))


def _drawn(images: Images, part: np.ndarray, most: int) -> np.ndarray:
    """At most `most` readable images of a part, ascending; unreadable ones do not change how the others are drawn."""
    shuffled = np.random.default_rng(SEED).permutation(part)
    return np.sort(shuffled[np.isin(shuffled, images.indices)][:most])
