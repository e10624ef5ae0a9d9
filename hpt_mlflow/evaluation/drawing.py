"""Drawing the few images whose labels may be used (HPT, section 4.2)."""

from __future__ import annotations

import numpy as np

from hpt_mlflow.errors import HptError
from hpt_mlflow.evaluation.scores import is_multilabel


def draw_labels(labels: np.ndarray, count: int | float, seed: int) -> np.ndarray:
    """Draw the images whose labels may be used: at least one per class, the rest in proportion to the classes.

    Of multi-label images, at least one with each label that occurs, and the rest at random.

    Args:
        labels: of the images to draw from, int64 (N,) or uint8 (N, L).
        count: a whole number of images (all, if there are fewer), or a fraction, a float in (0, 1].
        seed: the same labels, count and seed give the same images.

    Returns:
        Positions in `labels`, int64, in ascending order.

    Raises:
        HptError: the count is not such a number, or too small for one per class.
    """
    wanted = wanted_labels(len(labels), count)
    rng = np.random.default_rng(seed)
    drawn = _draw_labels_first if is_multilabel(labels) else _draw_classes
    return np.sort(drawn(labels, wanted, rng))


def wanted_labels(available: int, count: int | float) -> int:
    """The number of images that a count or a fraction means; at most those available.

    Raises:
        HptError: it is not a count or a fraction.
    """
    if isinstance(count, float):
        if not 0 < count <= 1:
            raise HptError(
                f"{count} is not a fraction above 0 and up to 1", "give a whole number of images", setting="labels"
            )
        return max(1, round(count * available))
    if count < 1:
        raise HptError(f"{count} is not a positive number", "ask for at least one image per class", setting="labels")
    return min(count, available)


def _draw_classes(labels: np.ndarray, wanted: int, rng: np.random.Generator) -> np.ndarray:
    """One per class, then in proportion to what is left of each class, by largest remainder."""
    classes, sizes = np.unique(labels, return_counts=True)
    if wanted < len(classes):
        raise _too_few(wanted, f"one of each of {len(classes)} classes", len(classes))
    left = sizes - 1
    share = (wanted - len(classes)) * left / max(1, left.sum())
    counts = 1 + share.astype(np.int64)
    # Equal remainders are ordered at random, so that no class has an advantage by its name.
    order = np.lexsort((rng.random(len(classes)), np.floor(share) - share))
    counts[order[: wanted - counts.sum()]] += 1
    drawn = [
        rng.permutation(np.flatnonzero(labels == label))[:count] for label, count in zip(classes, counts, strict=True)
    ]
    return np.concatenate(drawn)


def _draw_labels_first(labels: np.ndarray, wanted: int, rng: np.random.Generator) -> np.ndarray:
    """One image with each label that occurs, rarest label first, then any others."""
    order = rng.permutation(len(labels))
    drawn: list[int] = []
    counts = labels.sum(axis=0, dtype=np.int64)
    for label in np.argsort(counts, kind="stable"):
        if counts[label] and not labels[drawn, label].any():
            drawn.append(int(order[np.argmax(labels[order, label])]))
    if len(drawn) > wanted:
        raise _too_few(wanted, f"one with each of {np.count_nonzero(counts)} labels", len(drawn))
    return np.concatenate([drawn, order[~np.isin(order, drawn)][: wanted - len(drawn)]]).astype(np.int64)


def _too_few(wanted: int, needed: str, least: int) -> HptError:
    return HptError(f"{wanted} images cannot hold {needed}", f"ask for {least} or more", setting="labels")
