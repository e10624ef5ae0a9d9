from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from drawn import drawn
from matplotlib.colors import to_hex

from hpt_mlflow.augment.subset import AUGMENTATIONS, Strengths
from hpt_mlflow.interval import Interval
from hpt_mlflow.report.figures import BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILION
from hpt_mlflow.report.tuning_figures import (
    main_effects_figure,
    rung_curves,
    trials_table,
)
from hpt_mlflow.tuning.effects import common_step, main_effects
from hpt_mlflow.tuning.records import COMPLETE, FAILED, PRUNED, RUNNING, WAITING, TrialRecord, best_trial

SCORE = "20-NN accuracy on validation"
GRID = [tuple(name for name, on in zip(AUGMENTATIONS, bits, strict=True) if on) for bits in product((0, 1), repeat=5)]
# One of each state; the failed one has the best score, the pruned one the second.
FIVE = [
    TrialRecord(0, ("crop",), COMPLETE, {4: 0.3, 16: 0.5}, run_id="a"),
    TrialRecord(1, AUGMENTATIONS, PRUNED, {4: 0.8}, reason="worse than the median"),
    TrialRecord(2, ("crop", "flip"), COMPLETE, {4: 0.4, 16: 0.6}),
    TrialRecord(3, (), FAILED, {4: 0.9, 16: 0.95}, reason="out of memory"),
    TrialRecord(4, ("flip",), RUNNING, {4: 0.2}),
    TrialRecord(5, None, WAITING),
]


def search(count, rungs=(4, 16, 64)):
    """A search by successive halving: three of five trials end at each rung, and every thirteenth fails."""
    rng = np.random.default_rng(0)
    trials, seen = [], {rung: [] for rung in rungs}
    for number, i in enumerate(np.concatenate([rng.permutation(32) for _ in range(1 + count // 32)])[:count]):
        scores, state = {}, COMPLETE
        for rung in rungs:
            if number % 13 == 5 and rung == rungs[1 % len(rungs)]:
                state = FAILED
                break
            scores[rung] = 0.5 + 0.1 * len({"crop", "color"} & set(GRID[i])) + rng.normal(0, 0.03)
            seen[rung].append(scores[rung])
            if rung != rungs[-1] and scores[rung] < np.quantile(seen[rung], 0.6):
                state = PRUNED
                break
        trials.append(TrialRecord(number, GRID[i], state, scores))
    return trials


def figures(trials):
    step = common_step(trials)
    return {
        "main": main_effects_figure(main_effects(trials, step, AUGMENTATIONS), step, SCORE),
        "rungs": rung_curves(trials, AUGMENTATIONS, best_trial(trials, True), SCORE),
    }


def tick_labels(axis):
    """Those that are drawn: a label beyond the limits is not."""
    low, high = sorted(axis.get_view_interval())
    shown = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    return [label for tick in shown for label in (tick.label1, tick.label2) if label.get_visible()]


def unreadable(figure) -> list[str]:
    """Texts that are outside the figure, or overlap another one, once drawn."""
    drawn(figure)
    texts = [*figure.texts, *(text for legend in figure.legends for text in legend.get_texts())]
    for axes in figure.axes:
        texts += [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
        texts += [*tick_labels(axes.xaxis), *tick_labels(axes.yaxis)]
    shown = [
        (text.get_text(), text.get_window_extent(), text.get_rotation() == 45) for text in texts if text.get_text()
    ]
    width, height = figure.canvas.get_width_height()
    found = [text for text, box, _ in shown if box.x0 < -1 or box.y0 < -1 or box.x1 > width + 1 or box.y1 > height + 1]
    for i, (a, one, turned) in enumerate(shown):
        for b, other, also_turned in shown[:i]:
            # Parallel slanted lines are a line's height apart where their ends are sqrt(2) times that apart.
            apart = abs(one.x1 - other.x1) > 20 if turned and also_turned else not one.padded(-1).overlaps(other)
            found += [] if apart else [f"{a} / {b}"]
    return found


def legend(figure) -> list[str]:
    return [text.get_text() for shown in figure.legends for text in shown.get_texts()]


def line(axes, label):
    (found,) = [line for line in axes.lines if line.get_label().startswith(label)]
    return found


def looks(line):
    return line.get_marker(), to_hex(line.get_color()).upper()


def points(line):
    return [tuple(map(float, point)) for point in zip(*line.get_data(), strict=True)]


SEARCHES = {
    "empty": [],
    "waiting": [TrialRecord(0, None, WAITING)],
    "failed": [TrialRecord(0, ("crop",), FAILED), TrialRecord(1, None, WAITING)],
    "one": search(1),
    "five": FIVE,
    "thirty-two": search(32),
    "two hundred": search(200, (4, 8, 16, 32, 64, 128, 256)),
    "one rung": search(32, (100,)),
    "long": search(32, (1000, 4000, 16000, 64000, 256000, 1024000)),
    "wide": search(32, tuple(4000 * 2**k for k in range(8))),
    "slanted": search(32, tuple(1000 * 2**k for k in range(11))),
    "most": search(32, tuple(2**k for k in range(16))),
}


@pytest.mark.parametrize("name", SEARCHES)
def test_every_text_can_be_read(name):
    for kind, figure in figures(SEARCHES[name]).items():
        assert unreadable(figure) == [], kind
        assert max(drawn(figure).size) < 1000


def test_main_effects_are_sorted_and_have_their_intervals():
    effects = {"crop": Interval(0.1, 0.05, 0.15), "flip": Interval(-0.2, -0.3, -0.1), "blur": Interval(0.3, 0.2, 0.4)}
    axes = main_effects_figure(effects, 1024, SCORE).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["flip", "crop", "blur"]
    dots = [points(line)[0] for line in axes.lines if line.get_marker() == "o"]
    assert dots == [(-0.2, 0), (0.1, 1), (0.3, 2)]
    bars = [points(line) for line in axes.lines if line.get_linewidth() == 2.5]
    assert bars == [[(-0.3, 0), (-0.1, 0)], [(0.05, 1), (0.15, 1)], [(0.2, 2), (0.4, 2)]]
    assert [text.get_text() for text in axes.texts] == [effects[name].signed() for name in ("flip", "crop", "blur")]
    # Beside the axes, where no interval is.
    assert all(text.xy[0] > 1 for text in axes.texts)
    assert axes.lines[0].get_xdata() == [0, 0]
    low, high = axes.get_xlim()
    assert low < -0.3
    assert high > 0.4
    assert "after 1,024 optimiser steps" in axes.get_title()
    assert SCORE in axes.get_xlabel()


def test_main_effects_without_an_interval_have_none():
    axes = main_effects_figure({"crop": Interval(0.1, math.nan, math.nan)}, 4, SCORE).axes[0]
    assert not [line for line in axes.lines if line.get_linewidth() == 2.5]
    assert [text.get_text() for text in axes.texts] == ["+0.100"]


def test_without_effects_the_figure_says_so():
    assert "too few trials" in main_effects_figure({}, 0, SCORE).axes[0].texts[0].get_text()


def test_rung_curves_show_each_trial_from_rung_to_rung():
    figure = rung_curves(FIVE, ("none such",), None, SCORE)
    lines = figure.axes[0].lines
    assert [points(line) for line in lines] == [sorted(t.scores.items()) for t in FIVE if t.scores]
    assert [looks(line)[1] for line in lines] == [BLUE, GREY, BLUE, VERMILION, PURPLE]
    assert len({looks(line)[0] for line in lines}) == 4
    # A marker where the trial ended.
    assert {tuple(line.get_markevery()) for line in lines} == {(-1,)}
    assert legend(figure) == ["complete", "pruned (its last score)", "running (its last score)", "failed"]


def test_rung_curves_go_by_steps_and_name_the_states_there_are():
    figure = rung_curves([TrialRecord(0, (), COMPLETE, {16: 0.5, 4: 0.3})], ("crop",), None, SCORE)
    assert points(figure.axes[0].lines[0]) == [(4, 0.3), (16, 0.5)]
    assert legend(figure) == ["complete"]


@pytest.mark.parametrize("order", [1, -1])
def test_rung_curves_let_the_best_and_the_baseline_stand_out(order):
    figure = rung_curves(FIVE[::order], AUGMENTATIONS, FIVE[2], SCORE)
    labels = ["best: 0.6, crop,flip (trial 2)", "baseline: 0.8, crop,color,gray,blur,flip (trial 1)"]
    assert legend(figure)[-2:] == labels
    best, baseline = (line(figure.axes[0], label) for label in labels)
    assert looks(best) == ("o", GREEN)
    assert looks(baseline) == ("v", ORANGE)
    assert best.get_linestyle() != baseline.get_linestyle()
    others = [line for line in figure.axes[0].lines if line not in (best, baseline)]
    assert min(best.get_linewidth(), baseline.get_linewidth()) > max(line.get_linewidth() for line in others)
    assert min(best.get_zorder(), baseline.get_zorder()) > max(line.get_zorder() for line in others)


def test_rung_curves_name_the_baseline_that_is_the_best_once():
    figure = rung_curves(FIVE, ("crop", "flip"), FIVE[2], SCORE)
    assert legend(figure)[4:] == ["best, the baseline: 0.6, crop,flip (trial 2)"]


def test_rung_curves_take_the_baseline_with_the_papers_strengths_that_was_trained_longest():
    other = replace(FIVE[1], number=6, scores={4: 0.1, 16: 0.1, 64: 0.1}, strengths=Strengths(hue=0.1))
    longer = replace(FIVE[1], number=7, scores={4: 0.1, 16: 0.2})
    assert "baseline: 0.2, crop,color,gray,blur,flip (trial 7)" in legend(
        rung_curves([*FIVE, other, longer], AUGMENTATIONS, None, SCORE)
    )


@pytest.mark.parametrize(("rungs", "scale"), [((4, 16, 64), "log"), ((100, 150, 225), "log"), ((8,), "linear")])
def test_rung_curves_spread_rungs_evenly(rungs, scale):
    axes = rung_curves([TrialRecord(0, (), COMPLETE, dict.fromkeys(rungs, 0.5))], (), None, SCORE).axes[0]
    assert axes.get_xscale() == scale
    assert axes.get_xticks().tolist() == list(rungs)
    assert axes.get_xticks(minor=True).tolist() == []


def test_the_table_has_the_best_first():
    trials = [
        *FIVE,
        TrialRecord(6, ("gray",), PRUNED, {4: 0.7}),
        TrialRecord(7, ("blur",), COMPLETE, {4: 0.1, 16: 0.6}),
        TrialRecord(8, ("blur",), FAILED),
    ]
    assert trials_table(trials, True)["trial"] == [2, 7, 0, 1, 6, 3, 4, 5, 8]
    assert trials_table(trials, False)["trial"] == [0, 2, 7, 6, 1, 3, 4, 5, 8]
    for maximise in (True, False):
        assert trials_table(trials[::-1], maximise) == trials_table(trials, maximise)
        assert trials_table(trials, maximise)["trial"][0] == best_trial(trials, maximise).number


def test_the_table_has_a_column_of_each_thing():
    table = trials_table(FIVE, True)
    steps = ["score@4", "score@16"]
    assert list(table) == ["trial", "subset", *AUGMENTATIONS, "state", "steps", "score", *steps, "reason", "run_id"]
    rows = [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
    by_trial = {row["trial"]: row for row in rows}
    on = {"crop": True, "color": False, "gray": False, "blur": False, "flip": False}
    first = {
        "trial": 0,
        "subset": "crop",
        "state": COMPLETE,
        "steps": 16,
        "score": 0.5,
        "score@4": 0.3,
        "score@16": 0.5,
    }
    assert by_trial[0] == first | on | {"reason": "", "run_id": "a"}
    assert by_trial[1]["score@16"] is None
    assert by_trial[1]["reason"] == "worse than the median"
    waiting = {
        "trial": 5,
        "subset": "?",
        "state": WAITING,
        "steps": 0,
        "score": None,
        "score@4": None,
        "score@16": None,
    }
    assert by_trial[5] == waiting | dict.fromkeys(AUGMENTATIONS) | {"reason": "", "run_id": ""}
    json.dumps(table, allow_nan=False)


def test_the_table_has_strengths_where_any_differ():
    assert "strengths" not in trials_table(FIVE, True)
    table = trials_table([*FIVE, replace(FIVE[0], number=6, strengths=Strengths(hue=0.1))], True)
    assert dict(zip(table["trial"], table["strengths"], strict=True)) == dict.fromkeys(range(6), "") | {6: "hue=0.1"}


def test_the_table_of_no_trials_has_its_columns():
    assert trials_table([], True)["score"] == []
