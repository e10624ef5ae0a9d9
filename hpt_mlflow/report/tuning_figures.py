"""The trials of a search, their scores by steps and the effects of augmentations, as figures and a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
# Tick labels with more letters in all are slanted, as they do not fit side by side.
MOST_LETTERS = 60
# Height of a figure with a legend below, in inches.
HEIGHT = 4.4


def optimisation_history(trials: Sequence[TrialRecord], maximise: bool, objective_label: str) -> Figure:
    """The last score of each trial in the order they were started, and the best so far of those trained longest.

    Failed trials are on the lower edge, as their scores do not count.

    Args:
        maximise: whether a high score is good.
        objective_label: the name of the score.
    """
    figure, axes = plain_axes("trial", objective_label, HEIGHT)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    last = max((trial.number for trial in trials), default=0)
    axes.set_xlim(-0.03 * last - 0.5, 1.03 * last + 0.5)
    for state, (marker, colour) in STATES.items():
        shown = [trial for trial in trials if trial.state == state and (trial.scores or state == FAILED)]
        scores = [0.0 if state == FAILED else trial.score for trial in shown]
        on_edge: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "clip_on": False} if state == FAILED else {}
        if shown:
            numbers = [trial.number for trial in shown]
            axes.plot(numbers, scores, marker, color=colour, zorder=3, label=_state_label(state), **on_edge)
    best = best_trial(trials, maximise)
    if best is None:
        _write_instead(axes, "no scores yet")
    else:
        longest = [t for t in trials if t.reached == best.reached and t.state in (COMPLETE, PRUNED)]
        longest.sort(key=lambda trial: trial.number)
        best_so_far = (np.maximum if maximise else np.minimum).accumulate([trial.score for trial in longest])
        numbers_so_far = [*(trial.number for trial in longest), last + 0.4]
        label = f"best so far after {best.reached:,} steps"
        axes.step(numbers_so_far, [*best_so_far, best_so_far[-1]], where="post", color=GREEN, label=label)
        star: dict[str, Any] = {"color": GREEN, "markeredgecolor": "black", "markersize": 15, "zorder": 4}
        axes.plot([best.number], [best.score], "*", label=f"best: {_with_score(best)}", **star)
    if axes.lines:
        figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    return figure


def main_effects_figure(effects: Mapping[str, Interval], step: int, objective_label: str) -> Figure:
    """By how much the score changes when an augmentation is on instead of off, the largest change upwards first.

    Args:
        effects: by augmentation; without the interval if that is unknown.
        step: of training, at which scores were compared.
        objective_label: the name of the score.
    """
    figure, axes = plain_axes(f"change of {objective_label}\n(dot), with its 95% interval", "", HEIGHT)
    figure.set_size_inches(6.5, 1.8 + 0.45 * max(len(effects), 2))
    axes.set_title(_after("Augmentation on instead of off", step), fontsize=10)
    if not effects:
        axes.set_xticks([])
        _write_instead(axes, "too few trials to tell any effect")
        return figure
    names = sorted(effects, key=lambda name: effects[name].value)
    axes.axvline(0, color="black", linewidth=0.8)
    for row, name in enumerate(names):
        value, low, high = effects[name]
        if not math.isnan(low):
            axes.plot([low, high], [row, row], color=BLUE, linewidth=2.5, solid_capstyle="butt")
        axes.plot([value], [row], "o", color=BLUE, markersize=7)
        right_of_axes: Any = ("axes fraction", "data")
        axes.annotate(effects[name].signed(), (1.02, row), xycoords=right_of_axes, va="center", fontsize=9)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.margins(x=0.08)
    return figure


def interactions_figure(effects: Mapping[tuple[str, str], Interval], step: int, objective_label: str) -> Figure:
    """By how much the effect of one augmentation (row) differs when another (column) is on rather than off.

    Args:
        effects: by pair, each pair once.
        step: of training, at which scores were compared.
        objective_label: the name of the score.
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
    """Score against steps of training, one line per trial; the best one and the baseline are highlighted.

    Args:
        baseline_subset: augmentations of the baseline, in the order of application.
        best: the best trial; None for none.
        objective_label: the name of the score.
    """
    figure, axes = plain_axes("optimiser steps", objective_label, HEIGHT)
    scored = [trial for trial in trials if trial.scores]
    _rung_axis(axes, sorted({step for trial in scored for step in trial.scores}))
    # If there are several baselines, the one with the paper's strengths that was trained longest.
    baselines = [trial for trial in scored if trial.subset == tuple(baseline_subset)]
    baseline = max(baselines, key=lambda t: (t.strengths == Strengths(), t.reached, -t.number), default=None)
    highlights = {baseline.number: ("baseline", ORANGE, "--")} if baseline else {}
    if best:
        highlights[best.number] = ("best, the baseline" if best.number in highlights else "best", GREEN, "-")
    # The more lines, the fainter, so that it shows where many coincide.
    alpha = min(1.0, max(0.25, 12 / max(1, len(scored))))
    handles: list[Line2D] = []
    for trial in scored:
        marker, colour = STATES.get(trial.state, STATES[RUNNING])
        style: dict[str, Any] = {"color": colour, "alpha": alpha, "linewidth": 1, "zorder": 1 + (colour != GREY)}
        if trial.number in highlights:
            role, colour, line = highlights[trial.number]
            style = {"color": colour, "linestyle": line, "linewidth": 2.5, "zorder": 5, "markersize": 8}
            style["label"] = f"{role}: {_with_score(trial)}"
        points = zip(*sorted(trial.scores.items()), strict=True)
        lines = axes.plot(*points, marker=marker, markevery=[-1], **({"markersize": 5} | style))
        handles += lines if trial.number in highlights else []
    # The best before the baseline.
    handles.sort(key=lambda line: line.get_color() == ORANGE)
    states = [state for state in STATES if any(trial.state == state for trial in scored)]
    handles[:0] = [
        Line2D([], [], marker=STATES[state][0], color=STATES[state][1], label=_state_label(state)) for state in states
    ]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=8)
    else:
        _write_instead(axes, "no scores yet")
    return figure


def trials_table(trials: Sequence[TrialRecord], maximise: bool) -> dict[str, list[Any]]:
    """All trials by column, the best one first: by the steps that they reached, then by score.

    Unknown values are None. Trials that run or failed come last.

    Args:
        maximise: whether a high score is good.
    """

    def rank(trial: TrialRecord) -> tuple[bool, int, float, int]:
        score = trial.score if trial.scores else 0.0
        is_last = trial.state not in (COMPLETE, PRUNED)
        return is_last, -trial.reached, -score if maximise else score, trial.number

    rows = sorted(trials, key=rank)
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
    """Ticks at the rungs; on a logarithmic axis, as they grow by a factor."""
    if len(rungs) > 1:
        axes.set_xscale("log", base=2)
    if rungs:
        slanted = len(rungs) * len(f"{rungs[-1]:,}") > MOST_LETTERS
        axes.set_xticks(rungs, [f"{step:,}" for step in rungs], rotation=45 if slanted else 0)


def _state_label(state: str) -> str:
    return f"{state} (its last score)" if state in (PRUNED, RUNNING) else state


def _with_score(trial: TrialRecord) -> str:
    return f"{trial.score:.4g}, {trial.name} (trial {trial.number})"


def _after(title: str, step: int) -> str:
    return f"{title}\nafter {step:,} optimiser steps" if step else title


def _write_instead(axes: Axes, text: str) -> None:
    axes.set_yticks([])
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=GREY)
