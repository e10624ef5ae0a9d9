"""Train, validation and test: made once from the labels and a seed, and kept to by every stage."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields

import numpy as np

VALIDATION_SHARE = 0.2
TEST_SHARE = 0.2
SMALLEST_CLASS = 3
# The label of an image without a class.
NO_LABEL = -1
# Numbers of the parts, in the order of the fields of `Split`.
TRAIN, VALIDATION, TEST = range(3)
# Of a group that is in no part yet, and of one that is in the test part that its dataset comes with.
UNDECIDED, GIVEN = -1, -2


@dataclass(frozen=True)
class Split:
    """Indices into a dataset, int64, each part in ascending order.

    Attributes:
        unlabelled: images without a label beside labelled ones, for self-supervised training alone.
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    unlabelled: np.ndarray = field(default_factory=lambda: np.array([], dtype=np.int64))

    @property
    def seen(self) -> np.ndarray:
        """What self-supervised training may see: train and validation, never test (paper, section 4.1)."""
        seen = np.concatenate([self.train, self.validation, self.unlabelled])
        seen.sort()
        return seen

    @property
    def labelled(self) -> np.ndarray:
        """All three parts that an evaluation uses."""
        parts = np.concatenate([self.train, self.validation, self.test])
        parts.sort()
        return parts

    def restricted(self, indices: np.ndarray) -> Split:
        """What is among the indices, int64, of each part."""
        return Split(*(np.intersect1d(getattr(self, part.name), indices) for part in fields(self)))

    def reduced(self, count: int | float, seed: int) -> Split:
        """A number or share of what training may see, drawn at random, and all of test.

        A smaller choice lies in a larger one of the same seed.
        """
        wanted = count if isinstance(count, int) else max(1, round(count * len(self.seen)))
        drawn = np.random.default_rng(seed).permutation(self.seen)[:wanted]
        return self.restricted(np.concatenate([drawn, self.test]))


def stratified_split(
    labels: np.ndarray, seed: int, test: np.ndarray | None = None, groups: np.ndarray | None = None
) -> Split:
    """Split 60/20/20 within each class.

    Args:
        labels: int64 (N,).
        seed: the same labels and seed give the same split.
        test: indices of the test part where the dataset comes with one; the rest is then split 75/25 into train and
            validation.
        groups: int64 (N,), which images are the same; each counts once, with the label of the first. Those of an image
            of the given test part do not get into the others (they are left out).

    A class with fewer than three images cannot be in all parts; it goes to train.
    """
    if groups is not None:
        return _split_of_first(labels, seed, test, groups)
    rng = np.random.default_rng(seed)
    given = test is not None
    part = np.full(len(labels), TRAIN, np.int8)
    if test is not None:
        part[test] = TEST
    for of_class in _by_class(labels, part == TRAIN):
        of_class = rng.permutation(of_class)
        n = len(of_class)
        test_count = 0 if given else round(TEST_SHARE * n)
        validation_share = VALIDATION_SHARE / (1 - TEST_SHARE) if given else VALIDATION_SHARE
        validation_count = round(validation_share * n)
        if n >= SMALLEST_CLASS:
            validation_count = max(1, validation_count)
            test_count = test_count if given else max(1, test_count)
        else:
            validation_count = test_count = 0
        part[of_class[:test_count]] = TEST
        part[of_class[test_count : test_count + validation_count]] = VALIDATION
    return Split(*(np.flatnonzero(part == i) for i in (TRAIN, VALIDATION, TEST)))


def _split_of_first(labels: np.ndarray, seed: int, test: np.ndarray | None, groups: np.ndarray) -> Split:
    """The split of the first image of each group, which the others follow."""
    _, first, of_group = np.unique(groups, return_index=True, return_inverse=True)
    of_group = of_group.reshape(-1)
    given = None if test is None else np.unique(of_group[test])
    inner = stratified_split(labels[first], seed, given)
    train, validation, drawn = (
        np.flatnonzero(np.isin(of_group, part)) for part in (inner.train, inner.validation, inner.test)
    )
    return Split(train, validation, drawn if test is None else np.sort(test))


def join_identical(count: int, groups: np.ndarray | None, positions: np.ndarray, contents: np.ndarray) -> np.ndarray:
    """Groups of images that are joined where they share an identical image, int64 (count,).

    Args:
        groups: int64 (count,), or None where each image stands alone.
        positions: int64 (n,), the images whose contents are known, and
        contents: int64 (n,), those; 0 for what could not be read, which is like nothing else.
    """
    # Most datasets have no two identical images, and need not wait for this.
    from scipy.sparse import coo_array  # type: ignore[import-untyped]
    from scipy.sparse.csgraph import connected_components  # type: ignore[import-untyped]

    numbers = np.arange(count) if groups is None else np.unique(groups, return_inverse=True)[1].reshape(-1)
    order = np.argsort(contents, kind="stable")
    same = (contents[order[1:]] == contents[order[:-1]]) & (contents[order[1:]] != 0)
    one, other = numbers[positions[order[:-1][same]]], numbers[positions[order[1:][same]]]
    size = int(numbers.max(initial=-1)) + 1
    links = coo_array((np.ones(len(one), bool), (one, other)), shape=(size, size))
    joined = connected_components(links, directed=False)[1].astype(np.int64)
    return joined[numbers]


def _by_class(labels: np.ndarray, among: np.ndarray) -> Iterator[np.ndarray]:
    """The images of each class that has any, in ascending order, int64, of those that are `among`, bool (N,).

    They are sorted by their labels, as a look at all labels for each class takes classes x N steps.
    """
    keys = labels.astype(np.int32)
    keys[~among] = np.iinfo(np.int32).max
    members = np.argsort(keys, kind="stable")[: among.sum()]
    ordered = keys[members]
    if len(members):
        yield from np.split(members, np.flatnonzero(ordered[1:] != ordered[:-1]) + 1)


def grouped_split(
    memberships: np.ndarray, seed: int, test: np.ndarray | None = None, groups: np.ndarray | None = None
) -> Split:
    """Split 60/20/20 of whole groups, such as the images of one patient, where an image may have several labels.

    An iterative stratification (Sechidis et al., ECML PKDD 2011): of the labels that still have undivided groups, the
    rarest first, its groups are divided in random order so that each part gets its share of all that have the label,
    counting those that came to the part for a rarer label. What has no label fills the parts up to their shares of all.

    Args:
        memberships: bool or uint8 (N, L), which of the labels or classes an image has.
        seed: the same memberships, groups and seed give the same split.
        test: indices of the test part where the dataset comes with one; the rest is then split 75/25 into train and
            validation.
        groups: int64 (N,), which group an image is of; None where each is its own.

    Shares are of groups, not of images. A label that fewer than three groups have cannot be in all parts; they go to
    train. Groups that have an image in the given test part do not get into the others (their images are left out).
    """
    count = len(memberships)
    numbers = np.arange(count) if groups is None else np.unique(groups, return_inverse=True)[1].reshape(-1)
    shares = np.array([0, VALIDATION_SHARE, TEST_SHARE])
    given_test = np.array([], dtype=np.int64) if test is None else np.sort(test)
    if test is not None:
        shares = np.array([0, VALIDATION_SHARE / (1 - TEST_SHARE), 0])
    members = np.zeros((numbers.max(initial=-1) + 1, memberships.shape[1]), dtype=bool)  # groups x L
    image, label = np.nonzero(memberships)
    members[numbers[image], label] = True
    part = np.full(len(members), UNDECIDED)
    part[numbers[given_test]] = GIVEN
    _divide(members, part, shares, np.random.default_rng(seed))
    train, validation, drawn_test = (np.flatnonzero(part[numbers] == i) for i in range(3))
    return Split(train, validation, drawn_test if test is None else given_test)


def _divide(members: np.ndarray, part: np.ndarray, shares: np.ndarray, rng: np.random.Generator) -> None:
    """Decide on the part of every group that is undecided yet; in place.

    Args:
        members: bool (groups, L).
        part: int64 (groups,), `UNDECIDED`, `GIVEN`, or an index into `shares`.
        shares: of train (whatever the others leave), validation and test.
    """
    open_to_choice = part == UNDECIDED
    shuffled = rng.permutation(np.flatnonzero(open_to_choice))
    left = members[shuffled].sum(axis=0)  # undecided groups of each label
    while left.any():
        label = int(np.argmin(np.where(left > 0, left, len(members) + 1)))
        chosen = shuffled[members[shuffled, label] & (part[shuffled] == UNDECIDED)]
        _assign(chosen, members[:, label] & open_to_choice, part, shares)
        left -= members[chosen].sum(axis=0)
    _assign(shuffled[part[shuffled] == UNDECIDED], open_to_choice, part, shares)


def _assign(undecided: np.ndarray, all_of_them: np.ndarray, part: np.ndarray, shares: np.ndarray) -> None:
    """Give the undecided groups to the parts that lack most of their shares of all of them; in place."""
    total = int(all_of_them.sum())
    wanted = np.round(shares * total).astype(np.int64)
    wanted = np.where(shares > 0, np.maximum(wanted, 1), 0) if total >= SMALLEST_CLASS else 0 * wanted
    wanted[0] = total - wanted.sum()
    have = np.bincount(part[all_of_them & (part >= 0)], minlength=3)
    lacking = np.maximum(wanted - have, 0)
    # One part may have more than its share already; the others then go short, train first.
    for i in range(3):
        lacking[i] -= min(lacking[i], lacking.sum() - len(undecided))
    part[undecided] = np.repeat(np.arange(3), lacking)


def unlabelled_split(count: int, test: np.ndarray | None = None, groups: np.ndarray | None = None) -> Split:
    """All is train, but for a test part that the dataset comes with: without labels there is nothing to judge.

    Args:
        groups: int64 (N,); those of an image of the test part are left out of train.
    """
    nothing = np.array([], dtype=np.int64)
    if test is None:
        return Split(np.arange(count), nothing, nothing)
    held_out = np.zeros(count, bool)
    held_out[test] = True
    seen = ~held_out if groups is None else ~np.isin(groups, groups[test])
    return Split(np.flatnonzero(seen), nothing, np.flatnonzero(held_out))
