"""What an evaluation found, as pictures: confusions, curves and calibration."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator
from sklearn.metrics import roc_curve

from hpt_mlflow.evaluation.calibration import reliability
from hpt_mlflow.evaluation.scores import is_multilabel, label_aurocs
from hpt_mlflow.report.figures import BLUE, COLOURS, GREY, SKY, VERMILION, class_label, plain_axes

# A matrix of more classes than MOST_CLASSES shows SHOWN_CLASSES of them.
MOST_CLASSES = 60
SHOWN_CLASSES = 45
# Of more rows the names of the columns stand above too, and numbers are smaller.
ONE_SIDED = 20
# The least percentage that is written into a cell.
SMALLEST_SHARE = 1.0
# A legend of more labels than twice as many has only the best and the worst.
ROC_BEST_AND_WORST = 9


def confusion_matrix(truth: np.ndarray, prediction: np.ndarray, classes: Sequence[str]) -> Figure:
    """Share of each true class (row) that was taken for each class (column), in percent.

    Of more than `MOST_CLASSES` classes, the `SHOWN_CLASSES` with the most frequent confusions are shown, and all others
    together in a last column.

    Args:
        truth, prediction: int64 (N,), indices into `classes`.
    """
    counts = np.zeros((len(classes), len(classes)))
    np.add.at(counts, (truth, prediction), 1)
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    title = f"{np.mean(truth == prediction):.1%} of {len(truth):,} images right" if len(truth) else "no images"
    columns = [class_label(name) for name in classes]
    rows = [f"{name} ({total:,.0f})" for name, total in zip(columns, counts.sum(axis=1), strict=True)]
    if len(classes) > MOST_CLASSES:
        shown = _most_confused_classes(counts, SHOWN_CLASSES)
        rows, columns = [rows[i] for i in shown], [*(columns[i] for i in shown), "any other class"]
        others = shares[shown].sum(axis=1) - shares[np.ix_(shown, shown)].sum(axis=1)
        shares = np.concatenate([shares[np.ix_(shown, shown)], others[:, None]], axis=1)
        title += f"; of {len(classes)} classes, the {len(shown)} with the most frequent confusions"

    n = len(rows)
    cell = min(0.8, max(0.32, 4 / n))
    figure = Figure(figsize=(max(5.0, cell * len(columns) + 2.6), cell * n + 2.8), layout="constrained")
    figure.suptitle(title, fontsize=10)
    axes = figure.add_subplot()
    right = np.eye(*shares.shape) == 1
    # The square root lets a confusion of 5 % be seen next to 90 % that are right.
    for hidden, colours in ((~right, "Blues"), (right, "Oranges")):
        axes.imshow(np.ma.array(np.sqrt(shares / 100), mask=hidden | (shares == 0)), cmap=colours, vmin=0, vmax=1)
    axes.set_xticks(range(len(columns)), columns, rotation=90, fontsize=8)
    axes.tick_params(axis="x", labeltop=n > ONE_SIDED)
    axes.set_yticks(range(n), rows, fontsize=8)
    axes.set_ylabel("true class (its images)", labelpad=8)
    axes.set_xlabel(f"predicted class\n(% of the row, where at least {SMALLEST_SHARE:.0f})")
    axes.set_xticks(np.arange(1, len(columns)) - 0.5, minor=True)
    axes.set_yticks(np.arange(1, n) - 0.5, minor=True)
    axes.grid(which="minor", color="0.9", linewidth=0.6)
    axes.tick_params(which="minor", length=0)
    size = 7 if n > ONE_SIDED else 9
    for row, column in zip(*np.nonzero(shares >= SMALLEST_SHARE), strict=True):
        colour = "white" if shares[row, column] > 45 else "black"
        axes.text(column, row, f"{shares[row, column]:.0f}", ha="center", va="center", fontsize=size, color=colour)
    return figure


def _most_confused_classes(counts: np.ndarray, most: int) -> list[int]:
    """The classes of the most frequent confusions, in their own order.

    Args:
        counts: (C, C), images by true and predicted class.
    """
    wrong = counts * (1 - np.eye(len(counts)))
    shown: set[int] = set()
    for pair in np.argsort(-wrong, axis=None, kind="stable").tolist():
        both = set(divmod(pair, len(counts)))
        if len(shown | both) <= most:
            shown |= both
        if len(shown) == most:
            break
    return sorted(shown)


def reliability_diagram(truth: np.ndarray, probabilities: np.ndarray) -> Figure:
    """How often decisions are right against how sure they are, in bins of confidence, and how many each bin holds.

    Args:
        truth: int64 (N,) classes, or uint8 (N, C) labels, whose decisions are pooled.
        probabilities: float32 (N, C).
    """
    found = reliability(truth, probabilities)
    bins = len(found.counts)
    edges, width = np.arange(bins) / bins, 1 / bins
    figure = Figure(figsize=(5, 6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    upper.bar(edges, found.accuracy, width, align="edge", color=BLUE, edgecolor="white", label="accuracy")
    low, high = np.fmin(found.accuracy, found.confidence), np.fmax(found.accuracy, found.confidence)
    gap = {"hatch": "////", "facecolor": (0.84, 0.37, 0.0, 0.25), "edgecolor": VERMILION, "linewidth": 0.8}
    upper.bar(edges, high - low, width, low, align="edge", label="gap to the mean confidence", **gap)
    upper.plot([0, 1], [0, 1], color="black", linestyle="--", linewidth=1, label="calibrated")
    what = "decisions on labels" if is_multilabel(truth) else "images"
    error = found.expected_calibration_error
    upper.set(title=f"Expected calibration error {error:.3f}", ylabel="share that is right")
    upper.set(xlim=(0, 1), ylim=(0, 1.02))
    upper.legend(loc="upper left", fontsize=8)
    bars = lower.bar(edges, found.counts, width, align="edge", color=SKY, edgecolor="white")
    lower.bar_label(bars, [f"{count:,}" if count else "" for count in found.counts], fontsize=6, rotation=90, padding=2)
    lower.margins(y=0.5)
    lower.yaxis.set_major_formatter("{x:,.0f}")
    lower.set(xlabel="confidence", ylabel=what)
    return figure


def roc_curves(truth: np.ndarray, probabilities: np.ndarray, classes: Sequence[str]) -> Figure:
    """ROC curve of each label, the largest area first; of many labels, those with the largest and smallest areas.

    Labels that all images have, or none, have no curve.

    Args:
        truth: uint8 (N, L).
        probabilities: float32 (N, L).
    """
    areas = label_aurocs(truth, probabilities)
    known = np.flatnonzero(~np.isnan(areas))
    order = known[np.argsort(-areas[known], kind="stable")].tolist()
    title = f"Mean AUROC of {len(known)} labels: {areas[known].mean():.3f}" if len(known) else "No AUROC"
    if len(known) < len(classes):
        title += f"\nwithout a curve, being on all images or on none: {len(classes) - len(known)}"
    if len(order) > 2 * ROC_BEST_AND_WORST:
        order = order[:ROC_BEST_AND_WORST] + order[-ROC_BEST_AND_WORST:]
        title += f"\nshown: the {ROC_BEST_AND_WORST} largest and the {ROC_BEST_AND_WORST} smallest"
    figure = Figure(figsize=(7.5, 5), layout="constrained")
    axes = figure.add_subplot(aspect="equal", xlabel="false positive rate", ylabel="true positive rate")
    axes.set_title(title, fontsize=10)
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
    for place, label in enumerate(order):
        false_positives, true_positives, _ = roc_curve(truth[:, label], probabilities[:, label])
        style = ("-", "--", "-.")[place // len(COLOURS) % 3]
        text = f"{areas[label]:.3f}  {class_label(classes[label])}"
        axes.plot(false_positives, true_positives, style, color=COLOURS[place % len(COLOURS)], label=text)
    if order:
        axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1), fontsize=8, title="AUROC", alignment="left")
    return figure


def milestone_curve(
    steps: Sequence[int],
    scores: Sequence[float],
    lows: Sequence[float],
    highs: Sequence[float],
    metric: str,
    untrained: float | None = None,
) -> Figure:
    """Score of each milestone against pretraining steps, on a logarithmic axis where they span more than a decade.

    Args:
        steps: optimiser steps of pretraining, in any order.
        scores, lows, highs: of each milestone, and the ends of its interval.
        metric: name of the score.
        untrained: score of the untrained network.
    """
    figure, axes = plain_axes("optimiser steps of pretraining", metric)
    order = np.argsort(steps, kind="stable")
    x, y, low, high = (np.asarray(values, dtype=np.float64)[order] for values in (steps, scores, lows, highs))
    axes.fill_between(x, low, high, color=BLUE, alpha=0.2, linewidth=0, label="95% interval")
    axes.plot(x, y, marker="o", markersize=4, color=BLUE, label="milestone")
    _step_axis(axes, x)
    if untrained is not None:
        axes.axhline(untrained, color=GREY, linestyle="--", label=f"untrained network: {untrained:.3f}")
    figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    return figure


def _step_axis(axes: Axes, steps: np.ndarray) -> None:
    """A logarithmic axis for steps that span more than a decade, else a linear one with ticks at whole steps.

    Args:
        steps: (N,), ascending.
    """
    positive = steps[steps > 0]
    if len(positive) and positive[-1] > 10 * positive[0]:
        # Linear below the first step, as a logarithmic axis has no place for step 0.
        axes.set_xscale("symlog", linthresh=positive[0])
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.xaxis.set_major_formatter("{x:,.0f}")
