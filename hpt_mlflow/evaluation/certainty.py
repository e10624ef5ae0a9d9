"""How certain a test score is, and whether two models differ on the same test images: bootstrap over the images.

A resample draws as many test images as there are, with replacement. An interval holds 95% of the resampled scores (the
percentile method; Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapters 13 and 15). It covers the
choice of test images only, not that of the training or its seed. A score of exactly 0 or 1 gets an interval of width 0,
since no resample can show a mistake that was not made.

For classes, only the class of an image and whether it was right matter, so a resample is one multinomial draw over
these few cells, which has exactly the same distribution. AUROC needs the images themselves: a resample is a vector of
weights, how often each image was drawn.

A class without an image in a resample is left out of its balanced accuracy (as in scikit-learn). A label that all
images of a resample have, or none, is left out of its mean AUROC, and the resample out of the interval of that label.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest  # type: ignore[import-untyped]

from hpt_mlflow.evaluation.scores import is_multilabel, primary_name
from hpt_mlflow.interval import Interval

RESAMPLES = 2000
LEVEL_PERCENT = 95.0
# Weights of a chunk of resamples take this many bytes, and up to four times as much while a label is worked on.
CHUNK_BYTES = 2**24


class Difference(NamedTuple):
    """One figure of two models on the same test images.

    Attributes:
        name: of the figure: `accuracy`, `balanced_accuracy` or `auroc`.
        a, b: of each model on the images that both were tested on.
        difference: b - a, with the interval of the paired bootstrap: both models on the same resamples.
        p: two-sided bootstrap p value of no difference; never below 2 / (resamples + 1).
    """

    name: str
    a: Interval
    b: Interval
    difference: Interval
    p: float


class Comparison(NamedTuple):
    """Two models on the same test images.

    Attributes:
        images: how many test images both have seen.
        primary: the figure that models are chosen by.
        balanced: balanced accuracy; None for labels.
        only_a, only_b: images that one model alone got right; None for labels.
        mcnemar_p: of McNemar's exact test that both are right equally often; None for labels.
    """

    images: int
    primary: Difference
    balanced: Difference | None = None
    only_a: int | None = None
    only_b: int | None = None
    mcnemar_p: float | None = None

    @property
    def is_shown(self) -> bool:
        """Whether the interval of the primary difference leaves out 0."""
        return self.primary.difference.excludes_zero


def test_intervals(
    truth: np.ndarray,
    probabilities: np.ndarray,
    classes: Sequence[str],
    resamples: int = RESAMPLES,  # noqa: PT028 - it only begins as a test does
    seed: int = 0,  # noqa: PT028
) -> dict[str, Interval]:
    """Every test figure with its 95% interval.

    Args:
        truth: int64 (N,) classes, or uint8 (N, C) labels.
        probabilities: float32 (N, C).
        classes: C names.
        resamples: bootstrap resamples.
        seed: the same arguments and seed give the same intervals.

    Returns:
        `accuracy` and `balanced_accuracy` for classes; for labels `auroc`, the mean over the labels, and `auroc/LABEL`
        for each label that some test images have and some have not.
    """
    rng = np.random.default_rng(seed)
    if not is_multilabel(truth):
        right = probabilities.argmax(axis=1) == truth
        figures, resampled = _resample_classes(truth, right[None], resamples, rng)
        return {name: _interval(figures[name][0], resampled[name][0]) for name in figures}
    exact, by_label = _resample_labels(truth, [probabilities], resamples, rng)
    intervals = {"auroc": _interval(_mean(exact)[0], _mean(by_label)[0])}
    for label, name in enumerate(classes):
        if not math.isnan(exact[0, label]):
            intervals[f"auroc/{name}"] = _interval(exact[0, label], by_label[0, :, label])
    return intervals


# Its name begins as those of tests do.
test_intervals.__test__ = False  # type: ignore[attr-defined]


def paired(
    truth: np.ndarray,
    probabilities_a: np.ndarray,
    probabilities_b: np.ndarray,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Compare two models on the same test images by paired bootstrap, and for classes by McNemar's test.

    Args:
        truth: int64 (N,) classes, or uint8 (N, C) labels.
        probabilities_a, probabilities_b: float32 (N, C) of each model, rows as in `truth`.
        resamples: bootstrap resamples.
        seed: the same arguments and seed give the same comparison.
    """
    rng = np.random.default_rng(seed)
    if is_multilabel(truth):
        exact, by_label = _resample_labels(truth, [probabilities_a, probabilities_b], resamples, rng)
        return Comparison(len(truth), _difference(primary_name(truth), _mean(exact), _mean(by_label)))
    right = np.stack([probabilities.argmax(axis=1) == truth for probabilities in (probabilities_a, probabilities_b)])
    figures, resampled = _resample_classes(truth, right, resamples, rng)
    primary, balanced = (_difference(name, figures[name], resampled[name]) for name in figures)
    only_a, only_b = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
    # The images that one model alone got right are flips of a fair coin (McNemar 1947).
    mcnemar_p = float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
    return Comparison(len(truth), primary, balanced, only_a, only_b, mcnemar_p)


def _resample_classes(
    truth: np.ndarray, right: np.ndarray, resamples: int, rng: np.random.Generator
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Accuracy and balanced accuracy of M models, and of their resamples.

    Args:
        truth: int64 (N,).
        right: bool (M, N).

    Returns:
        By figure, float64 (M,), and float64 (M, R).
    """
    models = len(right)
    patterns = 2**models
    known, position = np.unique(truth, return_inverse=True)
    # A cell is a class and which of the models were right.
    pattern = (right * 2 ** np.arange(models)[:, None]).sum(axis=0)
    cells = np.bincount(position * patterns + pattern, minlength=len(known) * patterns)
    found = np.array([[which >> model & 1 for which in range(patterns)] for model in range(models)])  # (M, patterns)

    def figures(counts: np.ndarray) -> dict[str, np.ndarray]:
        counts = counts.reshape(len(counts), len(known), patterns)  # (R, classes, patterns)
        drawn = counts.sum(axis=2)
        hits = np.einsum("rkp,mp->mrk", counts, found)
        with np.errstate(invalid="ignore"):
            recall = hits / drawn
        return {"accuracy": hits.sum(axis=2) / len(truth), "balanced_accuracy": np.nanmean(recall, axis=2)}

    drawn = rng.multinomial(len(truth), cells / len(truth), size=resamples)
    return {name: values[:, 0] for name, values in figures(cells[None]).items()}, figures(drawn)


def _resample_labels(
    truth: np.ndarray, models: Sequence[np.ndarray], resamples: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """AUROC of every label of M models, and of their resamples.

    Args:
        truth: uint8 (N, C).
        models: of each, float32 (N, C).

    Returns:
        float64 (M, C), and float64 (M, R, C); NaN where it is not defined.
    """
    count, labels = truth.shape
    areas = [[_ranked(truth[:, label], scores[:, label]) for label in range(labels)] for scores in models]
    exact = np.array([[area(np.ones((1, count), np.int32))[0] for area in row] for row in areas])
    by_label = np.empty((len(models), resamples, labels))
    start = 0
    for weights in _weights(count, resamples, rng):
        part = slice(start, start + len(weights))
        for model, row in enumerate(areas):
            for label, area in enumerate(row):
                by_label[model, part, label] = area(weights)
        start += len(weights)
    return exact, by_label


def _weights(count: int, resamples: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """How often each of N images is in each resample, int32 (chunk, N)."""
    chunk = max(1, CHUNK_BYTES // (4 * count))
    for start in range(0, resamples, chunk):
        drawn = [
            np.bincount(rng.integers(count, size=count), minlength=count) for _ in range(min(chunk, resamples - start))
        ]
        yield np.array(drawn, dtype=np.int32)


def _ranked(has: np.ndarray, scores: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The weighted area under one label's ROC curve, by one sort for all weights.

    It is the weighted share of pairs of an image with the label and one without in which the first has the higher
    score, ties counting one half (Mann and Whitney 1947): what the trapezoids of `sklearn.metrics.roc_auc_score` add
    up to.

    Args:
        has: uint8 (N,), whether each image has the label.
        scores: float32 (N,).

    Returns:
        From int32 weights (R, N) to float64 (R,); NaN where all of the weight is on one side.
    """
    with_label, without = np.flatnonzero(has), np.flatnonzero(has == 0)
    without = without[np.argsort(scores[without], kind="stable")]
    # For each image with the label: how many of those without have a lower score, and how many no higher one.
    lower = np.searchsorted(scores[without], scores[with_label], side="left")
    no_higher = np.searchsorted(scores[without], scores[with_label], side="right")

    def area(weights: np.ndarray) -> np.ndarray:
        below = np.zeros((len(weights), len(without) + 1), np.int32)
        np.cumsum(np.take(weights, without, axis=1), axis=1, out=below[:, 1:])
        mine = np.take(weights, with_label, axis=1)
        beaten = np.take(below, lower, axis=1) + np.take(below, no_higher, axis=1)
        twice_won = np.einsum("rn,rn->r", mine, beaten, dtype=np.float64)
        pairs = mine.sum(axis=1, dtype=np.float64) * below[:, -1]
        return np.divide(twice_won, 2 * pairs, out=np.full(len(weights), np.nan), where=pairs > 0)

    return area


def _mean(by_label: np.ndarray) -> np.ndarray:
    """Mean over the labels, the last axis, for which it is defined; NaN if there is none."""
    defined = ~np.isnan(by_label)
    count = defined.sum(axis=-1)
    total = np.where(defined, by_label, 0).sum(axis=-1)
    return np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)


def _interval(value: float, resampled: np.ndarray) -> Interval:
    tail = (100 - LEVEL_PERCENT) / 2
    defined = resampled[~np.isnan(resampled)]
    if not len(defined):
        return Interval(float(value), math.nan, math.nan)
    low, high = np.percentile(defined, [tail, 100 - tail])
    return Interval(float(value), float(low), float(high))


def _difference(name: str, exact: np.ndarray, resampled: np.ndarray) -> Difference:
    """From a figure of two models, float64 (2,), and of their resamples, float64 (2, R)."""
    a, b = (_interval(value, values) for value, values in zip(exact, resampled, strict=True))
    differences = resampled[1] - resampled[0]
    differences = differences[~np.isnan(differences)]
    # Counted with the figure itself, so that p is never 0 (Davison and Hinkley 1997, section 4.2.3).
    tail = min((differences <= 0).sum(), (differences >= 0).sum())
    p = min(1.0, 2 * float(tail + 1) / (len(differences) + 1))
    return Difference(name, a, b, _interval(exact[1] - exact[0], differences), p)
