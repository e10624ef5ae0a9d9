"""The figure of each experiment in the paper's form: means over the seeds, with 95% intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, StrMethodFormatter

from hpt_mlflow.experiments.claims import BASE_AS_IS, losses_by_seed
from hpt_mlflow.experiments.results import Estimate, Results, estimate
from hpt_mlflow.report.figures import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION, plain_axes

METHOD_COLOURS = {"Base": GREY, BASE_AS_IS: GREY, "Target": ORANGE, "HPT": BLUE, "HPT-BN": GREEN, "B+S+T": VERMILION}
OTHER_COLOURS = (GREY, ORANGE, PURPLE, BLUE, GREEN, SKY)
CONDITIONS = {
    "semi-supervised": "labels",
    "augmentation": "augmentations that are left",
    "data-amount": "images of the target",
}
# On the target; and how they are drawn.
LEARN_NOTHING = {"Base": "--", BASE_AS_IS: "-."}
MARKERS = "osDv^<>"
HEIGHT = 4.6
# More milestones than these have no room for a tick each.
MOST_TICKS = 10
# How far apart the methods stand at one condition.
APART = 0.08
# And levels beside the picture, as a share of its width.
BESIDE = 0.015


class Level(NamedTuple):
    """A mean that is the same all along."""

    label: str
    found: Estimate
    colour: str
    style: str


def experiment_figure(results: Results) -> Figure:
    """What the paper draws of this experiment; figures in percent."""
    axis = {"accuracy": "test top-1, %", "auroc": "mean test AUROC, %"}[results.metric]
    if results.study == "separability":
        return _against_steps(results, axis)
    if results.study == "sequential":
        return _side_by_side(results, axis)
    return _by_condition(results, axis)


def _against_steps(results: Results, axis: str) -> Figure:
    figure, axes = plain_axes("steps of pretraining on the target", axis, HEIGHT)
    levels = []
    for number, method in enumerate(results.methods):
        curves = list(results.by_seed(method).values())
        steps = sorted(set.intersection(*(set(curve) for curve in curves)))
        means = [estimate([curve[step] for curve in curves]) for step in steps]
        colour = _colour(method, number)
        if method in LEARN_NOTHING:
            levels.append(Level(method, means[0], colour, LEARN_NOTHING[method]))
            continue
        middle, low, high = (np.array([100 * getattr(m, name) for m in means]) for name in ("mean", "low", "high"))
        axes.plot(steps, middle, marker=MARKERS[number % len(MARKERS)], color=colour, label=method)
        axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set_xscale("log")
    milestones = {
        step for (method, *_), curve in results.figures.items() if method not in LEARN_NOTHING for step in curve
    }
    if len(milestones) <= MOST_TICKS:
        axes.set_xticks(sorted(milestones))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    return _finish(figure, axes, results, levels)


def _side_by_side(results: Results, axis: str) -> Figure:
    figure, axes = plain_axes("stages in a row: Base, Source, Target", axis, HEIGHT)
    for number, method in enumerate(results.methods):
        found = results.mean(method)
        if found:
            _bar(axes, number, found, _colour(method, number), "o")
    axes.set_xticks(range(len(results.methods)), results.methods)
    return _finish(figure, axes, results)


def _by_condition(results: Results, axis: str) -> Figure:
    baseline = results.conditions[0] if results.study == "augmentation" else None
    if baseline:
        axis = f"points of {axis.removesuffix(', %')} lost"
    figure, axes = plain_axes(CONDITIONS[results.study], axis, HEIGHT)
    shown = [condition for condition in results.conditions if condition != baseline]
    for number, method in enumerate(results.methods):
        for place, condition in enumerate(shown):
            values = (
                losses_by_seed(results, method, condition, baseline) if baseline else results.last(method, condition)
            )
            if values:
                where = place + APART * (number - (len(results.methods) - 1) / 2)
                marker = MARKERS[number % len(MARKERS)]
                label = method if method not in axes.get_legend_handles_labels()[1] else None
                _bar(axes, where, estimate(list(values.values())), _colour(method, number), marker, label)
    labels = [condition.replace(",", "\n") for condition in shown]
    axes.set_xticks(range(len(shown)), labels, fontsize=8 if len(shown) < 8 else 5)
    return _finish(figure, axes, results, with_untrained=baseline is None)


def _bar(axes: Axes, place: float, found: Estimate, colour: str, marker: str, label: str | None = None) -> None:
    """A mean and its interval, in percent; a mean alone where one seed has no interval."""
    spread = None if math.isnan(found.low) else [[100 * (found.mean - found.low)], [100 * (found.high - found.mean)]]
    axes.errorbar(
        [place],
        [100 * found.mean],
        yerr=spread,
        fmt=marker,
        color=colour,
        capsize=3,
        label=label,
    )


def _finish(
    figure: Figure, axes: Axes, results: Results, levels: Sequence[Level] = (), with_untrained: bool = True
) -> Figure:
    if with_untrained and results.untrained:
        levels = [*levels, Level("untrained network", estimate(list(results.untrained.values())), "black", ":")]
    for level in levels:
        axes.axhline(
            100 * level.found.mean, color=level.colour, linewidth=1.2, linestyle=level.style, label=level.label
        )
    is_cut = _look_at_means(axes)
    for number, level in enumerate(levels):
        _interval_beside(axes, number, level)
    seeds = len({seed for _, _, seed in results.figures})
    shown = "mean and 95% interval" if seeds > 1 else "no interval"
    cut = ", cut off where longer" if is_cut else ""
    axes.set_title(f"{results.study}: {shown}{cut}, {seeds} seed{'s' * (seeds > 1)}", fontsize=10)
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside lower center", ncols=5, fontsize=8)
    return figure


def _interval_beside(axes: Axes, number: int, level: Level) -> None:
    """The interval of a level, right of the picture, as far as the picture goes."""
    if math.isnan(level.found.low):
        return
    ends = np.clip([100 * level.found.low, 100 * level.found.high], *axes.get_ylim())
    where = 1 + BESIDE * (number + 1)
    axes.plot(
        [where, where],
        ends,
        transform=axes.get_yaxis_transform(),
        clip_on=False,
        color=level.colour,
        linewidth=1.2,
        linestyle=level.style,
        label=f"_{level.label}",
    )


def _look_at_means(axes: Axes) -> bool:
    """Limit the view to twice the range of the means: the intervals of two seeds are 13 times their spread.

    Returns:
        Whether an interval is cut off.
    """
    # Caps of intervals are lines, too.
    lines = [np.asarray(line.get_ydata(), dtype=float) for line in axes.lines if line.get_marker() != "_"]
    shown = np.concatenate(lines or [np.zeros(1)])
    low, high = np.nanmin(shown), np.nanmax(shown)
    margin = max(2.0, high - low)
    bottom, top = axes.get_ylim()
    axes.set_ylim(max(bottom, low - margin), min(top, high + margin))
    return bool(axes.dataLim.y0 < low - margin or axes.dataLim.y1 > high + margin)


def _colour(method: str, number: int) -> str:
    return METHOD_COLOURS.get(method, OTHER_COLOURS[number % len(OTHER_COLOURS)])
