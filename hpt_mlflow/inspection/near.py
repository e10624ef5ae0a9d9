"""Near copies among pictures: the same picture re-encoded, resized, slightly cropped or mirrored.

Candidates are pictures whose lowest frequencies, those that pHash takes the signs of, point in nearly the same
direction: of the whole picture or of a part that a crop would show, and mirrored. Their thumbnails are then laid over
each other, and compared in colour.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hpt_mlflow.data.perceptual import MIRROR, WHOLE, Window, directions, frequencies
from hpt_mlflow.inspection.alignment import differences
from hpt_mlflow.inspection.search import Neighbours

# Crops that are looked for: this share of each side, at nine places. The alignment finds those in between.
CROPPED = 0.9
WINDOWS: tuple[Window, ...] = (
    WHOLE,
    *((top, left, CROPPED, CROPPED) for top in (0.0, 0.05, 0.1) for left in (0.0, 0.05, 0.1)),
)
# Candidates per picture and window, and the least cosine of their frequencies.
CANDIDATES, LEAST_COSINE = 16, 0.92
# Difference of two versions of a picture, at most (see `differences`); measured by benchmarks/near_copies.py.
MOST_DIFFERENT = 0.2
# Where pictures come in families that look alike, such as playing cards, a copy is nearer than the rest of them: a
# match counts if it is the best of one of its pictures. Below this difference, all of them count.
ALIKE = 0.04
# A part of this share of a side or less is a crop.
CROP_FROM = 0.97


@dataclass(frozen=True)
class NearPairs:
    """Pairs of pictures that are versions of one.

    Attributes:
        one, other: int64 (P,), positions; where one is a crop, it is `other`.
        difference: float32 (P,), of their colours, in standard deviations of the picture.
        parts: float64 (P, 4), the part of `one` that `other` shows: top, left, height and width as shares.
        mirrored: bool (P,).
    """

    one: np.ndarray
    other: np.ndarray
    difference: np.ndarray
    parts: np.ndarray
    mirrored: np.ndarray

    def __len__(self) -> int:
        return len(self.one)

    def chosen(self, rows: np.ndarray) -> NearPairs:
        """Some of them, by a mask or by positions."""
        fields = (self.one, self.other, self.difference, self.parts, self.mirrored)
        return NearPairs(*(field[rows] for field in fields))

    def how(self, row: int) -> str:
        """In what a pair differs, in words."""
        words = ["mirrored"] if self.mirrored[row] else []
        if self.parts[row, 2:].min() < CROP_FROM:
            words.append("cropped")
        if self.difference[row] == 0 and not words:
            return "the same pixels"
        return ", ".join(words) or "re-encoded or resized"


def near_pairs(
    thumbnails: np.ndarray, compared: np.ndarray, on_step: Callable[[int, int], None] = lambda step, steps: None
) -> NearPairs:
    """Find the near copies among pictures.

    Args:
        thumbnails: uint8 (N, S, S, 3), of `data.perceptual`; a mapped file will do.
        compared: int64 (n,), the positions to compare, such as those of readable pictures.
        on_step: called after each of the steps.
    """
    different, same = _without_repeats(thumbnails, compared)
    one, other, windows, mirrored = _candidates(thumbnails, different, on_step)
    difference, parts = differences(thumbnails, one, other, windows, mirrored)
    close = difference <= MOST_DIFFERENT
    found = NearPairs(one, other, difference, parts, mirrored).chosen(close)
    on_step(2 * len(WINDOWS) + 1, 2 * len(WINDOWS) + 1)
    return _joined(same, found.chosen(_among_the_best(found, len(thumbnails))))


def without_near_copies(pairs: NearPairs, order: np.ndarray, kept_out: np.ndarray) -> np.ndarray:
    """The pictures that remain if, of each pair, the later one goes, and what is near to one `kept_out` goes, too.

    Chains are not followed: of three pictures in a row of small changes, the first and the last remain.

    Args:
        order: int64 (n,), the pictures to choose from, the preferred first.
        kept_out: int64 (m,), pictures that none may be near to, such as those of a test part.
    """
    partners: dict[int, list[int]] = {}
    for one, other in zip(pairs.one.tolist(), pairs.other.tolist(), strict=True):
        partners.setdefault(one, []).append(other)
        partners.setdefault(other, []).append(one)
    taken, remaining = set(kept_out.tolist()), []
    for picture in order.tolist():
        if picture not in taken and taken.isdisjoint(partners.get(picture, ())):
            taken.add(picture)
            remaining.append(picture)
    return np.array(remaining, np.int64)


def _without_repeats(thumbnails: np.ndarray, compared: np.ndarray) -> tuple[np.ndarray, NearPairs]:
    """The first of the pictures with the same thumbnail, int64, and each of the others with its first."""
    digests = (hashlib.blake2b(thumbnails[i].tobytes(), digest_size=8).digest() for i in compared.tolist())
    keys = np.frombuffer(b"".join(digests), np.uint64)
    _, first, of = np.unique(keys, return_index=True, return_inverse=True)
    firsts = compared[first[of.reshape(-1)]]
    repeats = firsts != compared
    count = int(repeats.sum())
    pairs = NearPairs(
        firsts[repeats],
        compared[repeats],
        np.zeros(count, np.float32),
        np.tile(np.array(WHOLE), (count, 1)),
        np.zeros(count, bool),
    )
    return np.sort(compared[first]), pairs


def _candidates(
    thumbnails: np.ndarray, compared: np.ndarray, on_step: Callable[[int, int], None]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Pairs whose frequencies are alike, each once: the larger picture, its crop, the window, and whether mirrored."""
    pictures = thumbnails[compared] if len(compared) < len(thumbnails) else thumbnails
    bank = Neighbours(directions(frequencies(pictures)))
    found: list[tuple[np.ndarray, ...]] = []
    for number, window in enumerate(WINDOWS):
        of_window = frequencies(pictures, window)
        for mirrored in (False, True):
            queries = directions(of_window * MIRROR if mirrored else of_window)
            one, other, cosine = bank.within(queries, CANDIDATES + 1, LEAST_COSINE)
            apart = one != other
            how = np.full(apart.sum(), 2 * number + mirrored)
            found.append((one[apart], other[apart], cosine[apart], how))
            on_step(2 * number + mirrored + 1, 2 * len(WINDOWS) + 1)
    one, other, cosine, how = (np.concatenate(parts) for parts in zip(*found, strict=True))
    pair = np.minimum(one, other) * len(compared) + np.maximum(one, other)
    order = np.lexsort((-cosine, pair))
    best = order[np.unique(pair[order], return_index=True)[1]]
    windows = np.array(WINDOWS)[how[best] // 2]
    return compared[one[best]], compared[other[best]], windows, how[best] % 2 == 1


def _among_the_best(pairs: NearPairs, count: int) -> np.ndarray:
    """Which pairs are the best match of at least one of their pictures, bool (P,)."""
    limit = np.full(count, np.inf, np.float32)
    for side in (pairs.one, pairs.other):
        np.minimum.at(limit, side, pairs.difference)
    return pairs.difference <= np.maximum(np.maximum(limit[pairs.one], limit[pairs.other]), ALIKE)


def _joined(first: NearPairs, second: NearPairs) -> NearPairs:
    names = ("one", "other", "difference", "parts", "mirrored")
    return NearPairs(*(np.concatenate([getattr(first, name), getattr(second, name)]) for name in names))
