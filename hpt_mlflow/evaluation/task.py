"""What an evaluation works on: a labelled dataset, split, and the features of its parts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from torch import nn

from hpt_mlflow.data.split import Split
from hpt_mlflow.evaluation.drawing import draw_labels
from hpt_mlflow.evaluation.feature_cache import cached_features
from hpt_mlflow.evaluation.features import FeatureReader


class Parts(NamedTuple):
    """Train, validation and test: features, float32 (N, F), or labels, int64 (N,) or uint8 (N, C)."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


@dataclass(frozen=True)
class Task:
    """A labelled dataset, split and checked, and how its images are read.

    Attributes:
        split: of the readable images.
        labels: of the whole dataset, int64 (N,) or uint8 (N, C).
        classes: names of the C classes or labels.
        content: contents of the readable images, int64 (N,), in the order of `reader.images.indices`.
        count: how many labels may be learned from, a number or a fraction of train; None for all of train.
    """

    reader: FeatureReader
    split: Split
    labels: np.ndarray
    classes: tuple[str, ...]
    content: np.ndarray
    count: int | float | None = None

    def with_drawn_labels(self, seed: int) -> Task:
        """The task whose train part has only the images to learn from, drawn from a seed.

        Raises:
            HptError: there is no such number of images, or it is too small for one per class.
        """
        train = self.split.train
        if self.count is None:
            return self
        drawn = draw_labels(self.labels[train], self.count, seed)
        return replace(self, split=replace(self.split, train=train[drawn]), count=None)

    def part_content(self, part: np.ndarray) -> np.ndarray:
        """The contents of the images of a part, int64 (N,)."""
        return self.content[self._positions(part)]

    @property
    def part_labels(self) -> Parts:
        """The labels of each part."""
        return Parts(*(self.labels[part] for part in self._parts))

    def frozen_features(self, backbone: nn.Module) -> Parts:
        """Features of the centre crops of each part by a backbone on the reader's device, from the cache if possible.

        Raises:
            HptError: too many images have become unreadable.
        """
        return self._by_part(cached_features(self.reader, backbone, self.content))

    def features(self, backbone: nn.Module) -> Parts:
        """As `frozen_features`, without a cache: for a backbone that nobody will use again."""
        return self._by_part(self.reader.features(backbone, self.reader.images.indices))

    @property
    def _parts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.split.train, self.split.validation, self.split.test

    def _by_part(self, features: np.ndarray) -> Parts:
        return Parts(*(features[self._positions(part)] for part in self._parts))

    def _positions(self, part: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.reader.images.indices, part)
