"""The forms of the paper's figures: means over the seeds with 95% intervals, in percent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, StrMethodFormatter

from hpt_mlflow.experiments.results import METRICS, Results, mean_of
from hpt_mlflow.interval import Interval
from hpt_mlflow.report.figures import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION, plain_axes

# The Base without the refresh of its batch-norm statistics on the target that the paper gives it.
BASE_AS_IS = "Base as it is"
METHOD_COLOURS = {"Base": GREY, BASE_AS_IS: GREY, "Target": ORANGE, "HPT": BLUE, "HPT-BN": GREEN, "B+S+T": VERMILION}
OTHER_COLOURS = (GREY, ORANGE, PURPLE, BLUE, GREEN, SKY)
# What does not learn on the target, and how its level is drawn.
LEARN_NOTHING = {"Base": "--", BASE_AS_IS: "-."}
MARKERS = "osDv^<>"
HEIGHT = 4.6
# With more milestones there is no room for a tick at each.
MOST_TICKS = 10
# Distance between the methods at one condition.
APART = 0.08


class Level(NamedTuple):
    """A mean that does not depend on the x-axis."""

    label: str
    mean: Interval
    colour: str
    style: str


def against_steps(results: Results) -> Figure:
    """Scores against pretraining steps: a curve for each method, a level for what does not learn on the target."""
    figure, axes = plain_axes("steps of pretraining on the target", f"{METRICS[results.metric]}, %", HEIGHT)
    levels = []
    milestones: set[int] = set()
    for number, method in enumerate(results.methods):
        curves = list(results.by_seed(method).values())
        steps = sorted(set.intersection(*(set(curve) for curve in curves)))
        means = [mean_of([curve[step] for curve in curves]) for step in steps]
        colour = _colour(method, number)
        if method in LEARN_NOTHING:
            levels.append(Level(method, means[0], colour, LEARN_NOTHING[method]))
            continue
        milestones.update(*curves)
        middle, low, high = 100 * np.array(means).T
        axes.plot(steps, middle, marker=MARKERS[number % len(MARKERS)], color=colour, label=method)
        axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set_xscale("log")
    if len(milestones) <= MOST_TICKS:
        axes.set_xticks(sorted(milestones))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    return _finish(figure, axes, results, levels)


def side_by_side(results: Results, label: str) -> Figure:
    """The last score of each method.

    Args:
        label: of the x-axis.
    """
    figure, axes = plain_axes(label, f"{METRICS[results.metric]}, %", HEIGHT)
    for number, method in enumerate(results.methods):
        mean = results.mean(method)
        if mean:
            _bar(axes, number, mean, _colour(method, number), "o")
    axes.set_xticks(range(len(results.methods)), results.methods)
    return _finish(figure, axes, results)


def by_condition(results: Results, label: str, baseline: str | None = None) -> Figure:
    """The last score of each method under each condition.

    Args:
        label: of the x-axis.
        baseline: a condition; the figure then shows how many points are lost under the others.
    """
    metric = METRICS[results.metric]
    figure, axes = plain_axes(label, f"{metric}, %" if baseline is None else f"points of {metric} lost", HEIGHT)
    shown = [condition for condition in results.conditions if condition != baseline]
    for number, method in enumerate(results.methods):
        for place, condition in enumerate(shown):
            scores = results.lost(method, condition, baseline) if baseline else results.last(method, condition)
            if scores:
                where = place + APART * (number - (len(results.methods) - 1) / 2)
                marker = MARKERS[number % len(MARKERS)]
                name = method if method not in axes.get_legend_handles_labels()[1] else None
                _bar(axes, where, mean_of(list(scores.values())), _colour(method, number), marker, name)
    ticks = [condition.replace(",", "\n") for condition in shown]
    axes.set_xticks(range(len(shown)), ticks, fontsize=8 if len(shown) < 8 else 5)
    return _finish(figure, axes, results, with_untrained=baseline is None)


def _bar(axes: Axes, place: float, mean: Interval, colour: str, marker: str, label: str | None = None) -> None:
    """A mean and its interval, if there is one, in percent."""
    spread = [[100 * (mean.value - mean.low)], [100 * (mean.high - mean.value)]] if mean.is_known else None
    axes.errorbar([place], [100 * mean.value], yerr=spread, fmt=marker, color=colour, capsize=3, label=label)


def _finish(
    figure: Figure, axes: Axes, results: Results, levels: Sequence[Level] = (), with_untrained: bool = True
) -> Figure:
    if with_untrained and results.untrained:
        levels = [*levels, Level("untrained network", mean_of(list(results.untrained.values())), "black", ":")]
    for level in levels:
        axes.axhline(
            100 * level.mean.value, color=level.colour, linewidth=1.2, linestyle=level.style, label=level.label
        )
        if level.mean.is_known:
            axes.axhspan(100 * level.mean.low, 100 * level.mean.high, color=level.colour, alpha=0.1, linewidth=0)
    is_cut = _look_at_means(axes)
    seeds = len({seed for _, _, seed in results.scores})
    shown = "mean and 95% interval" if seeds > 1 else "no interval"
    cut = ", cut off where longer" if is_cut else ""
    axes.set_title(f"{results.study}: {shown}{cut}, {seeds} seed{'s' * (seeds > 1)}", fontsize=10)
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside lower center", ncols=5, fontsize=8)
    return figure


def _look_at_means(axes: Axes) -> bool:
    """Limit the view to twice the range of the means: the intervals of two seeds are 13 times their spread.

    Returns:
        Whether an interval is cut off.
    """
    # The caps of intervals are lines too.
    lines = [np.asarray(line.get_ydata(), dtype=float) for line in axes.lines if line.get_marker() != "_"]
    shown = np.concatenate(lines or [np.zeros(1)])
    low, high = np.nanmin(shown), np.nanmax(shown)
    margin = max(2.0, high - low)
    bottom, top = axes.get_ylim()
    axes.set_ylim(max(bottom, low - margin), min(top, high + margin))
    return bool(axes.dataLim.y0 < low - margin or axes.dataLim.y1 > high + margin)


def _colour(method: str, number: int) -> str:
    return METHOD_COLOURS.get(method, OTHER_COLOURS[number % len(OTHER_COLOURS)])
