"""What a search for augmentations judges a frozen backbone by, also where there are no labels.

`probe` and `knn` ask how well the features tell the labels. `rotation` needs none: it asks how well they tell by how
much an image was turned, which ranks backbones that differ in their augmentations much as a probe on labels does
(Reed et al., "SelfAugment", CVPR 2021, arXiv 2009.07724); but not where no side is up, as under a microscope. The
loss of the pretraining, `infonce`, needs no judge: the training loop gives it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from hpt_mlflow.data.images import Images
from hpt_mlflow.data.split import VALIDATION_SHARE, Split
from hpt_mlflow.errors import HptError
from hpt_mlflow.evaluation.features import FeatureReader
from hpt_mlflow.evaluation.neighbours import nearest_neighbour_votes
from hpt_mlflow.evaluation.probe import fit_probe
from hpt_mlflow.evaluation.scores import is_multilabel, primary_score
from hpt_mlflow.models.randomness import seeded

OBJECTIVES = ("probe", "knn", "rotation", "infonce")
NEED_LABELS = ("probe", "knn")
# The most images that judge, turned ones each counted: a search asks them again and again. For the same reason linear
# classifiers are fitted with two values of C, instead of the probe's six, and stopped early, which regularises too.
TRAIN_IMAGES = 5000
VALIDATION_IMAGES = 2000
REGULARISATIONS = (1e-2, 1e-1)
ITERATIONS = 20
FEWEST_IMAGES = 2
# Where fewer judge, the noise of their verdict, 1.6 points and more, is as large as what subsets differ by: then every
# image judges in its turn.
ENOUGH_IMAGES = 1000
FOLDS = 5
# By 0, 90, 180 and 270 degrees, counterclockwise.
TURNS = 4
# Another search on the same dataset and split judges by the same images.
SEED = 0


def maximises(objective: str) -> bool:
    """Whether more is better; of `infonce`, a loss, less is."""
    return objective != "infonce"


@dataclass(frozen=True)
class Judge:
    """Gives frozen backbones scores that can be compared, by the same images. `make_judge` makes it.

    Attributes:
        objective: `probe`, `knn` or `rotation`; not `infonce`, which the training loop gives.
        reader: of images that hold all that are in the rounds.
        rounds: indices of the images that a classifier learns from, or that vote, and of those that it is judged by;
            int64, ascending. With more than one round each image judges in one of them: a cross-validation.
        labels: of the whole dataset, int64 (N,) or uint8 (N, C); None will do for `rotation`.
    """

    objective: str
    reader: FeatureReader
    rounds: tuple[tuple[np.ndarray, np.ndarray], ...]
    labels: np.ndarray | None

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES or self.objective == "infonce":
            raise ValueError(f"{self.objective!r} has no judge; only probe, knn and rotation have")
        if self.objective in NEED_LABELS and self.labels is None:
            raise ValueError(f"{self.objective!r} cannot judge without labels")

    def score(self, backbone: nn.Module) -> float:
        """How good the features of a backbone on the reader's device are, in [0, 1], more is better.

        `probe` gives the score of the best linear classifier on validation and `knn` that of the weighted vote of 20
        neighbours: top-1, or the mean AUROC of labels that stand each on its own. `rotation` gives the share of turned
        validation images of which a linear classifier tells the turn; 0.25 is chance. All rounds give one score.

        The backbone is judged as it is in evaluation mode, and left exactly as it is, as are torch's random numbers:
        its training may go on. Images that cannot be read any more are reported to the reader's images and left out.

        Returns:
            NaN where features are not finite: the backbone has diverged.

        Raises:
            HptError: too many images cannot be read any more.
        """
        # A layer may draw in evaluation mode too.
        with seeded(0, self.reader.device):
            examples = self._examples(backbone)
        if not np.isfinite(examples.features).all():
            return float("nan")
        classes = examples.labels.shape[1] if is_multilabel(examples.labels) else int(examples.labels.max()) + 1
        answers, truth = [], []
        for train, validation in self.rounds:
            known, asked = examples.of(train), examples.of(validation)
            # Of a small round, all images may have vanished.
            if len(known.labels) and len(asked.labels):
                answers.append(self._answer(known, asked, classes))
                truth.append(asked.labels)
        return primary_score(np.concatenate(truth), np.concatenate(answers))

    def _answer(self, known: _Examples, asked: _Examples, classes: int) -> np.ndarray:
        """Scores of the classes or labels for what is asked; float32 (M, classes)."""
        if self.objective == "knn":
            votes = nearest_neighbour_votes(known.features, known.labels, asked.features)
            return np.pad(votes, ((0, 0), (0, classes - votes.shape[1])))
        examples = (known.features, known.labels, asked.features, asked.labels)
        probe = fit_probe(*examples, classes, self.reader.device, REGULARISATIONS, ITERATIONS)
        return probe.head.probabilities(asked.features)

    def _examples(self, backbone: nn.Module) -> _Examples:
        """What is to be told from what, of all images of the rounds that can be read."""
        part = np.unique(np.concatenate([part for both in self.rounds for part in both]))
        if self.objective == "rotation":
            # All turns of an image pass at once.
            reader = replace(self.reader, batch_size=max(1, self.reader.batch_size // TURNS))
            features = reader.features(_Turned(backbone), part)  # N x 4F
        else:
            features = self.reader.features(backbone, part)  # N x F
        still_there = ~np.isin(part, list(self.reader.images.unreadable))
        features, part = features[still_there], part[still_there]
        if self.objective == "rotation" or self.labels is None:
            turns = np.tile(np.arange(TURNS), len(part))
            return _Examples(features.reshape(TURNS * len(part), -1), turns, np.repeat(part, TURNS))
        return _Examples(features, self.labels[part], part)


def make_judge(objective: str, reader: FeatureReader, split: Split, labels: np.ndarray | None) -> Judge:
    """Choose the images that judge; the same dataset and split give the same ones, and none is of test.

    They are train and validation of the split, as far as the reader can read them, or `TRAIN_IMAGES` and
    `VALIDATION_IMAGES` drawn from them where they are more (for `rotation` a quarter, in four turns each). Where
    nothing is validation, as without labels, `rotation` holds a fifth of train out, whole groups where there are any.
    Where validation has fewer than `ENOUGH_IMAGES`, turned ones each counted, train and validation together are
    cross-validated instead, again by whole groups.

    Args:
        labels: of the whole dataset, int64 (N,) or uint8 (N, C), or None.

    Raises:
        HptError: the objective needs labels and there are none, or there are too few images to judge by.
    """
    images, name = reader.images, reader.images.dataset.name
    if objective in NEED_LABELS and labels is None:
        raise HptError(f"objective: {objective} needs labels, and {name} has none; use rotation, or give labels")
    train, validation = split.train, split.validation
    if objective == "rotation" and not len(validation):
        train, validation = _hold_out(images, train)
    turns = TURNS if objective == "rotation" else 1
    train = _drawn(images, train, TRAIN_IMAGES // turns)
    validation = _drawn(images, validation, VALIDATION_IMAGES // turns)
    for part, indices in (("train", train), ("validation", validation)):
        if len(indices) < FEWEST_IMAGES:
            raise HptError(
                f"objective: {objective} needs {FEWEST_IMAGES} or more readable images in {part}, and {name} has "
                f"{len(indices)}; give more images"
            )
    if objective in NEED_LABELS and labels is not None:
        asked = labels[validation]
        if (asked == asked[0]).all():
            raise HptError(
                f"objective: {objective} needs validation images whose labels differ, and the {len(asked)} of {name} "
                "all have the same; use rotation, or give more images"
            )
    folds = _folds(images, train, validation, labels) if turns * len(validation) < ENOUGH_IMAGES else ()
    return Judge(objective, reader, folds or ((train, validation),), labels)


class _Examples(NamedTuple):
    """Features, float32 (N, F), what is to be told from them, int64 (N,) or uint8 (N, C), and their images' indices."""

    features: np.ndarray
    labels: np.ndarray
    indices: np.ndarray

    def of(self, part: np.ndarray) -> _Examples:
        """Those of some images."""
        chosen = np.isin(self.indices, part)
        return _Examples(self.features[chosen], self.labels[chosen], self.indices[chosen])


class _Turned(nn.Module):
    """A backbone that sees each image in its four turns: float32 (N, 3, S, S) to (N, 4F), turn by turn."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, batch: Tensor) -> Tensor:
        # One pass through the backbone, as what is used more than once cannot be folded.
        turned = torch.cat([torch.rot90(batch, turn, (2, 3)) for turn in range(TURNS)])  # 4N x 3 x S x S
        features: Tensor = self.backbone(turned).flatten(1)  # 4N x F
        return features.unflatten(0, (TURNS, -1)).transpose(0, 1).flatten(1)


def _hold_out(images: Images, train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What is left of train, and a fifth of it: of its groups, or of its images where they have none."""
    groups = train if images.dataset.groups is None else images.dataset.groups[train]
    shuffled = np.random.default_rng(SEED).permutation(np.unique(groups))
    held_out = np.isin(groups, shuffled[: max(1, round(VALIDATION_SHARE * len(shuffled)))])
    return train[~held_out], train[held_out]


def _folds(
    images: Images, train: np.ndarray, validation: np.ndarray, labels: np.ndarray | None
) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Rounds in which each image is judged once by what the others teach.

    Whole groups stay together, and of each class as many as can be come into each round.
    """
    both = np.union1d(train, validation)
    shuffled = np.random.default_rng(SEED).permutation(both)
    if labels is not None and not is_multilabel(labels):
        shuffled = shuffled[np.argsort(labels[shuffled], kind="stable")]
    groups = np.arange(len(images.dataset)) if images.dataset.groups is None else images.dataset.groups
    # Numbers of the groups in the order in which they are met.
    _, first, number = np.unique(groups[shuffled], return_index=True, return_inverse=True)
    fold = np.argsort(np.argsort(first))[number] % FOLDS
    parts = [np.sort(shuffled[fold == i]) for i in range(FOLDS)]
    return tuple((np.setdiff1d(both, part), part) for part in parts if 0 < len(part) < len(both))


def _drawn(images: Images, part: np.ndarray, most: int) -> np.ndarray:
    """At most so many images of a part, ascending; whether one can be read does not change how others are drawn."""
    shuffled = np.random.default_rng(SEED).permutation(part)
    return np.sort(shuffled[np.isin(shuffled, images.indices)][:most])
