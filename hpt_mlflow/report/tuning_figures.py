"""The trials of a search, their scores by steps and the effects of augmentations, as figures and a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from hpt_mlflow.augment.subset import AUGMENTATIONS, Strengths, format_strengths
from hpt_mlflow.interval import Interval
from hpt_mlflow.report.figures import BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILION, plain_axes
from hpt_mlflow.tuning.records import COMPLETE, FAILED, PRUNED, RUNNING, TrialRecord

# Marker and colour of each state, in the order of the legend.
STATES = {COMPLETE: ("o", BLUE), PRUNED: ("v", GREY), RUNNING: ("d", PURPLE), FAILED: ("X", VERMILION)}
# Tick labels with more letters in all are slanted, as they do not fit side by side.
MOST_LETTERS = 60
# Height of a figure with a legend below, in inches.
HEIGHT = 4.4


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
    # If there are several baselines, the one with the strengths of the first trial that was trained longest.
    baselines = [trial for trial in scored if trial.subset == tuple(baseline_subset)]
    first = min(scored, key=lambda t: t.number, default=None)
    usual = first.strengths if first else None
    baseline = max(baselines, key=lambda t: (t.strengths == usual, t.reached, -t.number), default=None)
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
