"""What a look at datasets has found: near copies by where they are, and what remains without them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from hpt_mlflow.data.split import NO_LABEL
from hpt_mlflow.inspection.near import NearPairs, without_near_copies
from hpt_mlflow.inspection.survey import Survey


class Place(NamedTuple):
    """A dataset and the number of an image in it."""

    survey: Survey
    number: int


@dataclass(frozen=True)
class Findings:
    """The datasets in the order of a chain, and pairs of places in their table of thumbnails.

    Attributes:
        near: versions of one picture; None if they were not looked for.
        alike: pairs by the features of a model, `difference` being 1 - cosine; None without a model.
    """

    surveys: Sequence[Survey]
    near: NearPairs | None
    alike: NearPairs | None

    def place(self, row: int) -> Place:
        """The image at a place in the table."""
        survey = next(survey for survey in reversed(self.surveys) if survey.first <= row)
        return Place(survey, row - survey.first)

    @property
    def tested(self) -> np.ndarray:
        """Whether an image is in the test part of its dataset, bool (M,)."""
        tested = np.zeros(sum(len(survey.dataset) for survey in self.surveys), bool)
        for survey in self.surveys:
            tested[survey.first + survey.split.test] = True
        return tested

    def by_relation(self, pairs: NearPairs) -> dict[str, NearPairs]:
        """Pairs by where their images are, the worst first: the test part of one set and what others train on."""
        tested = self.tested
        starts = np.array([survey.first for survey in self.surveys])
        sets = [np.searchsorted(starts, side, side="right") - 1 for side in (pairs.one, pairs.other)]
        tests = [tested[side] for side in (pairs.one, pairs.other)]
        found: dict[str, list[int]] = {}
        for row, (one, other, a, b) in enumerate(zip(*sets, *tests, strict=True)):
            found.setdefault(self._relation((int(one), bool(a)), (int(other), bool(b))), []).append(row)
        order = sorted(found, key=lambda title: (not title.startswith("test"), title))
        return {title: pairs.chosen(np.array(found[title])) for title in order}

    def _relation(self, one: tuple[int, bool], other: tuple[int, bool]) -> str:
        (first, first_tested), (second, second_tested) = sorted((one, other))
        names = [self.surveys[number].dataset.name for number in (first, second)]
        if first_tested != second_tested:
            tested, seen = names if first_tested else names[::-1]
            return f"test part of {tested} and what is trained on in {seen}"
        parts = " (test parts)" if first_tested else ""
        return f"within {names[0]}{parts}" if first == second else f"between {names[0]} and {names[1]}{parts}"

    def tested_and_seen(self) -> int:
        """How many test images have a near copy among what the datasets train on."""
        if self.near is None:
            return 0
        tested = self.tested
        one, other = tested[self.near.one], tested[self.near.other]
        return len(np.unique(np.concatenate([self.near.one[one & ~other], self.near.other[other & ~one]])))

    def to_train_on(self) -> list[Place]:
        """Images that training may see, without unreadable, blank and near ones, and what is near to a test image.

        Of near copies, that of most pixels remains.
        """
        rows, pixels, held_out = [], [], []
        for survey in self.surveys:
            chosen = np.intersect1d(survey.split.seen, survey.shown)
            rows.append(survey.first + chosen)
            pixels.append(survey.sizes[chosen].prod(axis=1, dtype=np.int64))
            held_out.append(survey.first + survey.split.test)
        table, size = np.concatenate(rows), np.concatenate(pixels)
        order = table[np.lexsort((table, -size))]
        if self.near is not None:
            order = without_near_copies(self.near, order, np.concatenate(held_out))
        return [self.place(row) for row in np.sort(order).tolist()]

    def metrics(self) -> dict[str, float]:
        """The counts of all datasets together."""
        surveys = self.surveys
        counts = {
            "images": sum(len(survey.dataset) for survey in surveys),
            "left_out": sum(entry.count for survey in surveys for entry in survey.dataset.left_out),
            "unreadable": sum(len(survey.unreadable) for survey in surveys),
            "blank": sum(len(survey.blank) for survey in surveys),
            "saturated": sum(len(survey.saturated) for survey in surveys),
        }
        if self.near is not None:
            counts |= {"near_copies": len(self.near), "test_images_with_a_near_copy": self.tested_and_seen()}
        if self.alike is not None:
            counts["alike_by_features"] = len(self.alike)
        return {f"inspect/{name}": float(count) for name, count in counts.items()}


def class_counts(survey: Survey) -> list[tuple[str, int]]:
    """Images per class or label, the most frequent first; empty without labels."""
    dataset = survey.dataset
    if dataset.labels is None:
        return []
    if dataset.multilabel:
        counts = dataset.labels.sum(axis=0, dtype=np.int64)
    else:
        counts = np.bincount(dataset.labels[dataset.labels != NO_LABEL], minlength=len(dataset.classes))
    pairs = zip(dataset.classes, counts.tolist(), strict=True)
    return sorted(pairs, key=lambda pair: (-pair[1], pair[0]))


def size_counts(survey: Survey) -> Counter[str]:
    """How many images there are of each size, such as `64 x 64`."""
    return Counter(f"{width} x {height}" for width, height in survey.sizes[survey.readable].tolist())
