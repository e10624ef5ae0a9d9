"""Train, validation and test: made once from the labels and a seed, and kept to by every stage."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

VALIDATION_SHARE = 0.2
TEST_SHARE = 0.2
SMALLEST_CLASS = 3


@dataclass(frozen=True)
class Split:
    """Indices into a dataset, int64, each part in ascending order."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray

    @property
    def seen(self) -> np.ndarray:
        """What self-supervised training may see: train and validation, never test (paper, section 4.1)."""
        return np.sort(np.concatenate([self.train, self.validation]))


def stratified_split(labels: np.ndarray, seed: int, test: np.ndarray | None = None) -> Split:
    """Split 60/20/20 within each class.

    Args:
        labels: int64 (N,).
        seed: the same labels and seed give the same split.
        test: indices of the test part where the dataset comes with one; the rest is then split 75/25 into train and
            validation.

    A class with fewer than three images cannot be in all parts; it goes to train.
    """
    rng = np.random.default_rng(seed)
    parts: tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]] = ([], [], [])
    given_test = np.array([], dtype=np.int64) if test is None else np.sort(test)
    for label in np.unique(labels):
        members = rng.permutation(np.setdiff1d(np.flatnonzero(labels == label), given_test))
        n = len(members)
        test_count = 0 if test is not None else round(TEST_SHARE * n)
        validation_share = VALIDATION_SHARE / (1 - TEST_SHARE) if test is not None else VALIDATION_SHARE
        validation_count = round(validation_share * n)
        if n >= SMALLEST_CLASS:
            validation_count = max(1, validation_count)
            test_count = test_count if test is not None else max(1, test_count)
        else:
            validation_count = test_count = 0
        parts[2].append(members[:test_count])
        parts[1].append(members[test_count : test_count + validation_count])
        parts[0].append(members[test_count + validation_count :])
    train, validation, drawn_test = (np.sort(np.concatenate(part)) for part in parts)
    return Split(train, validation, given_test if test is not None else drawn_test)


def unlabelled_split(count: int, test: np.ndarray | None = None) -> Split:
    """All is train, but for a test part that the dataset comes with: without labels there is nothing to judge."""
    nothing = np.array([], dtype=np.int64)
    test = nothing if test is None else np.sort(test)
    return Split(np.setdiff1d(np.arange(count), test), nothing, test)
