"""What a search found, as pictures and a table: its trials, how they learned, and what each augmentation does."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from hpt_mlflow.augment.subset import AUGMENTATIONS, Strengths, format_strengths
from hpt_mlflow.interval import Interval
from hpt_mlflow.report.figures import BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILION, plain_axes
from hpt_mlflow.tuning.records import COMPLETE, FAILED, PRUNED, RUNNING, TrialRecord, best_trial

# Marker and colour of each state, in the order of the legend.
STATES = {COMPLETE: ("o", BLUE), PRUNED: ("v", GREY), RUNNING: ("d", PURPLE), FAILED: ("X", VERMILION)}
# More rungs than these, and the steps are ticks of their own choice.
MOST_RUNGS = 12
# Steps of more letters than these have no room side by side.
MOST_LETTERS = 60
# Rungs that grow by at least this factor are spread evenly by a logarithmic axis.
GEOMETRIC = 1.4
# Of a figure with a legend below, in inches.
HEIGHT = 4.4


def optimisation_history(trials: Sequence[TrialRecord], maximise: bool, objective_label: str) -> Figure:
    """The last score of each trial in the order they were started, and the best so far of those trained longest.

    Failed trials stand on the lower edge: their scores do not count.

    Args:
        maximise: whether a high score is good.
        objective_label: what the score is.
    """
    figure, axes = plain_axes("trial", objective_label, HEIGHT)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    last = max((trial.number for trial in trials), default=0)
    axes.set_xlim(-0.03 * last - 0.5, 1.03 * last + 0.5)
    best = best_trial(trials, maximise)
    for state, (marker, colour) in STATES.items():
        shown = [trial for trial in trials if trial.state == state and (trial.scores or state == FAILED)]
        if not shown:
            continue
        style: dict[str, Any] = {"marker": marker, "color": colour, "linestyle": "", "markersize": 6, "zorder": 3}
        numbers = [trial.number for trial in shown]
        if state == FAILED:
            edge = axes.get_xaxis_transform()
            axes.plot(numbers, [0.0] * len(shown), clip_on=False, transform=edge, label=FAILED, **style)
        else:
            axes.plot(numbers, [trial.score for trial in shown], label=_state_label(state), **style)
    if best is None:
        _nothing(axes, "no scores yet")
    else:
        longest = [t for t in trials if t.reached == best.reached and t.state in (COMPLETE, PRUNED)]
        longest.sort(key=lambda trial: trial.number)
        running = (np.maximum if maximise else np.minimum).accumulate([trial.score for trial in longest])
        steps = [*(trial.number for trial in longest), last + 0.4]
        label = f"best so far after {best.reached:,} steps"
        axes.step(steps, [*running, running[-1]], where="post", color=GREEN, label=label)
        star = f"best: {best.score:.4g}, {best.name} (trial {best.number})"
        axes.plot([best.number], [best.score], "*", color=GREEN, markersize=15, zorder=4, label=star)
        axes.lines[-1].set_markeredgecolor("black")
    if axes.lines:
        figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    return figure


def main_effects_figure(effects: Mapping[str, Interval], step: int, objective_label: str) -> Figure:
    """By how much the score changes when an augmentation is on instead of off, the largest change upwards first.

    Args:
        effects: by augmentation; an interval that is not known is left out.
        step: of training, at which scores were compared.
        objective_label: what the score is.
    """
    figure, axes = plain_axes(f"change of {objective_label}\n(dot), with its 95% interval", "", HEIGHT)
    figure.set_size_inches(6.5, 1.8 + 0.45 * max(len(effects), 2))
    axes.set_title(_after("Augmentation on instead of off", step), fontsize=10)
    if not effects:
        axes.set_xticks([])
        _nothing(axes, "too few trials to tell any effect")
        return figure
    names = sorted(effects, key=lambda name: effects[name].value)
    axes.axvline(0, color="black", linewidth=0.8)
    for row, name in enumerate(names):
        value, low, high = effects[name]
        if not math.isnan(low):
            axes.plot([low, high], [row, row], color=BLUE, linewidth=2.5, solid_capstyle="butt")
        axes.plot([value], [row], "o", color=BLUE, markersize=7)
        beside = ("axes fraction", "data")
        axes.annotate(effects[name].signed(), (1.02, row), xycoords=beside, va="center", fontsize=9)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.margins(x=0.08)
    return figure


def interactions_figure(effects: Mapping[tuple[str, str], Interval], step: int, objective_label: str) -> Figure:
    """By how much the effect of one augmentation (row) differs when another (column) is on rather than off.

    Args:
        effects: by pair, each pair once.
        step: of training, at which scores were compared.
        objective_label: what the score is.
    """
    n = len(AUGMENTATIONS)
    values = np.full((n, n), math.nan)
    for (a, b), effect in effects.items():
        i, j = AUGMENTATIONS.index(a), AUGMENTATIONS.index(b)
        values[i, j] = values[j, i] = effect.value
    figure = Figure(figsize=(6.0, 5.2), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(_after("Effect of the row when the column is on rather than off", step), fontsize=10)
    largest = np.nanmax(np.abs(values)) if effects else 1.0
    image = axes.imshow(np.ma.masked_invalid(values), cmap="PuOr", vmin=-largest, vmax=largest)
    axes.set_facecolor("0.93")
    axes.set_xticks(range(n), AUGMENTATIONS)
    axes.set_yticks(range(n), AUGMENTATIONS)
    axes.set_xlabel("bold: the 95% interval leaves out 0" if effects else "too few trials to tell any interaction")
    for (a, b), effect in effects.items():
        i, j = AUGMENTATIONS.index(a), AUGMENTATIONS.index(b)
        colour = "white" if abs(effect.value) > 0.7 * largest else "black"
        weight = "bold" if effect.excludes_zero else "normal"
        style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 9, "color": colour, "weight": weight}
        for row, column in ((i, j), (j, i)):
            axes.text(column, row, f"{effect.value:+.3f}", **style)
    if effects:
        figure.colorbar(image, label=f"difference of {objective_label}", shrink=0.8)
    return figure


def rung_curves(
    trials: Sequence[TrialRecord], baseline_subset: Sequence[str], best: TrialRecord | None, objective_label: str
) -> Figure:
    """Score against steps of training, one line a trial; the best one and the baseline stand out.

    Args:
        baseline_subset: augmentations of the baseline, in the order of application.
        best: the trial that stands out; None for none.
        objective_label: what the score is.
    """
    figure, axes = plain_axes("optimiser steps", objective_label, HEIGHT)
    scored = [trial for trial in trials if trial.scores]
    _rung_axis(axes, sorted({step for trial in scored for step in trial.scores}))
    # Of few lines each is seen; of many, where they lie together.
    alpha = min(1.0, max(0.25, 12 / max(1, len(scored))))
    stand_out: dict[int, tuple[str, str, str]] = {}
    if best is not None:
        stand_out[best.number] = (GREEN, "-", "best")
    # Of several baselines, the one with the paper's strengths that was trained longest.
    baselines = [trial for trial in scored if trial.subset == tuple(baseline_subset)]
    baseline = max(baselines, key=lambda t: (t.strengths == Strengths(), t.reached, -t.number), default=None)
    if baseline is not None and best is not None and baseline.number == best.number:
        stand_out[best.number] = (GREEN, "-", "best, the baseline")
    elif baseline is not None:
        stand_out[baseline.number] = (ORANGE, "--", "baseline")
    for trial in scored:
        marker, colour = STATES.get(trial.state, STATES[RUNNING])
        style: dict[str, Any] = {"color": colour, "alpha": alpha, "linewidth": 1, "zorder": 1 + (colour != GREY)}
        if trial.number in stand_out:
            colour, line, what = stand_out[trial.number]
            label = f"{what}: {trial.score:.4g}, {trial.name} (trial {trial.number})"
            style = {"color": colour, "linestyle": line, "linewidth": 2.5, "zorder": 5, "markersize": 8, "label": label}
        points = sorted(trial.scores.items())
        axes.plot(*zip(*points, strict=True), marker=marker, markevery=[-1], **({"markersize": 5} | style))
    handles = [
        Line2D([], [], color=colour, marker=marker, label=_state_label(state))
        for state, (marker, colour) in STATES.items()
        if any(trial.state == state for trial in scored)
    ]
    # The best before the baseline.
    labelled = [line for line in axes.lines if line.get_color() in (GREEN, ORANGE)]
    handles += sorted(labelled, key=lambda line: line.get_color() == ORANGE)
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=8)
    else:
        _nothing(axes, "no scores yet")
    return figure


def trials_table(trials: Sequence[TrialRecord], maximise: bool) -> dict[str, list[Any]]:
    """All trials by column, the best one first: of those that did not fail, the longest trained, then by score.

    What is not known is None. Trials that run or failed come last.

    Args:
        maximise: whether a high score is good.
    """
    counts = (COMPLETE, PRUNED)

    def place(trial: TrialRecord) -> tuple[bool, int, float, int]:
        score = trial.score if trial.scores else 0.0
        return trial.state not in counts, -trial.reached, -score if maximise else score, trial.number

    rows = sorted(trials, key=place)
    table: dict[str, list[Any]] = {"trial": [trial.number for trial in rows], "subset": [trial.name for trial in rows]}
    for name in AUGMENTATIONS:
        table[name] = [None if trial.subset is None else name in trial.subset for trial in rows]
    if any(trial.strengths != Strengths() for trial in rows):
        table["strengths"] = [format_strengths(trial.strengths) for trial in rows]
    table["state"] = [trial.state for trial in rows]
    table["steps"] = [trial.reached for trial in rows]
    table["score"] = [trial.score if trial.scores else None for trial in rows]
    for step in sorted({step for trial in rows for step in trial.scores}):
        table[f"score@{step}"] = [trial.scores.get(step) for trial in rows]
    table["reason"] = [trial.reason for trial in rows]
    table["run_id"] = [trial.run_id for trial in rows]
    return table


def _rung_axis(axes: Axes, rungs: Sequence[int]) -> None:
    """Ticks at the rungs where there are few, on a logarithmic axis where they grow by a factor."""
    if len(rungs) > 1 and rungs[0] > 0 and all(b >= GEOMETRIC * a for a, b in pairwise(rungs)):
        axes.set_xscale("log", base=2)
    if 0 < len(rungs) <= MOST_RUNGS:
        long = len(rungs) * len(f"{rungs[-1]:,}") > MOST_LETTERS
        axes.set_xticks(rungs, [f"{step:,}" for step in rungs], rotation=45 if long else 0)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.xaxis.set_major_formatter("{x:,.0f}")


def _state_label(state: str) -> str:
    return {PRUNED: "pruned (its last score)", RUNNING: "running (its last score)"}.get(state, state)


def _after(title: str, step: int) -> str:
    return f"{title}\nafter {step:,} optimiser steps" if step else title


def _nothing(axes: Axes, why: str) -> None:
    axes.set_yticks([])
    axes.text(0.5, 0.5, why, transform=axes.transAxes, ha="center", va="center", color=GREY)
