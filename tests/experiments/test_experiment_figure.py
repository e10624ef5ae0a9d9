from __future__ import annotations

import io
import math
import warnings
from itertools import combinations

import numpy as np
import pytest
from imagined import ALL_FIVE, FOUR, SEVEN, figure, imagined, of_each_study
from matplotlib.colors import to_hex

from hpt_mlflow.experiments import STUDIES
from hpt_mlflow.experiments.figure import OTHER_COLOURS
from hpt_mlflow.experiments.results import mean_of
from hpt_mlflow.report.figures import VERMILION

BY_CONDITION = ("semi-supervised", "augmentation", "data-amount")


def axes_of(results):
    (axes,) = figure(results).axes
    return axes


def legend(drawn):
    return [text.get_text() for shown in drawn.legends for text in shown.get_texts()]


def dots(axes):
    """Of each mean with its interval: where, the mean, the interval (None without one), colour and marker."""
    found = []
    for container in axes.containers:
        line, _, bars = container.lines
        ((x, y),) = zip(*line.get_data(), strict=True)
        ends = [tuple(segment[:, 1]) for bar in bars for segment in bar.get_segments()]
        assert len(ends) <= 1
        looks = (to_hex(line.get_color()), line.get_marker())
        found.append((float(x), float(y), ends[0] if ends else None, looks))
    return found


def line_of(axes, label):
    (found,) = [line for line in axes.lines if str(line.get_label()).partition(" ")[0] == label]
    return found


def percent(values):
    return tuple(100 * number for number in mean_of(values))


def expected_dots(results):
    """Of methods within conditions: the mean and its interval, in percent."""
    shown = results.conditions[1:] if results.study == "augmentation" else results.conditions
    expected = {}
    for place, condition in enumerate(shown):
        for method in results.methods:
            here = results.last(method, condition)
            if results.study == "augmentation":
                best = results.last(method, ALL_FIVE)
                here = {seed: best[seed] - value for seed, value in here.items()}
            expected[place, method] = percent(list(here.values()))
    return expected


def drawn_without_warnings(drawn):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn.savefig(io.BytesIO(), format="png")


def crowded(drawn):
    """Texts that are outside of the figure, or overlap another one, once drawn."""
    drawn_without_warnings(drawn)
    (axes,) = drawn.axes
    texts = [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.get_xticklabels(), *axes.get_yticklabels()]
    texts += [text for shown in drawn.legends for text in shown.get_texts()]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts if text.get_text() and text.get_visible()]
    width, height = drawn.canvas.get_width_height()
    bottom, top = axes.get_window_extent().y0, axes.get_window_extent().y1
    # Labels of ticks beyond the view are there, but not drawn.
    ticks = {text.get_text() for text in axes.get_yticklabels()}
    boxes = [(t, box) for t, box in boxes if t not in ticks or bottom <= (box.y0 + box.y1) / 2 <= top]
    found = [t for t, box in boxes if box.x0 < -1 or box.y0 < -1 or box.x1 > width + 1 or box.y1 > height + 1]
    return found + [
        f"{a} / {b}" for (a, one), (b, other) in combinations(boxes, 2) if one.padded(-1).overlaps(other.padded(-1))
    ]


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("study", STUDIES)
def test_every_text_can_be_read(study, seeds):
    assert crowded(figure(of_each_study(seeds)[study])) == []


def test_all_32_subsets_can_be_read():
    subsets = [
        ",".join(names) or "none" for size in range(5, -1, -1) for names in combinations(ALL_FIVE.split(","), size)
    ]
    results = imagined(
        "augmentation", {(m, c): [0.8 - 0.01 * i, 0.79] for i, c in enumerate(subsets) for m in ("Target", "HPT")}
    )
    axes = axes_of(results)
    assert len(axes.get_xticklabels()) == 31
    assert crowded(axes.figure) == []


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("study", STUDIES)
def test_the_title_names_the_study_and_what_is_shown(study, seeds):
    shown = {1: "no interval, 1 seed", 2: "mean and 95% interval, 2 seeds", 3: "mean and 95% interval, 3 seeds"}
    assert axes_of(of_each_study(seeds)[study]).get_title() == f"{study}: {shown[seeds]}"


@pytest.mark.parametrize(
    ("metric", "plain", "lost"),
    [
        ("accuracy", "test top-1, %", "points of test top-1 lost"),
        ("auroc", "mean test AUROC, %", "points of mean test AUROC lost"),
    ],
)
@pytest.mark.parametrize("study", STUDIES)
def test_the_axis_names_the_metric(study, metric, plain, lost):
    results = of_each_study()[study]
    figures = {(m, c): list(results.by_seed(m, c).values()) for m in results.methods for c in results.conditions}
    axes = axes_of(imagined(study, figures, metric=metric))
    assert axes.get_ylabel() == (lost if study == "augmentation" else plain)


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("study", STUDIES)
def test_the_legend_names_what_is_drawn_once(study, seeds):
    results = of_each_study(seeds)[study]
    untrained = ["untrained network"]
    expected = {
        "separability": ["Base", "Target", "HPT", "HPT-BN", *untrained],
        "semi-supervised": list(FOUR),
        "sequential": untrained,
        "augmentation": ["Target", "HPT"],
        "data-amount": [*FOUR, *untrained],
        "methods": [],
    }
    assert sorted(legend(figure(results))) == sorted(expected[study])


@pytest.mark.parametrize("study", STUDIES)
@pytest.mark.parametrize("seeds", [1, 10])
def test_no_mean_is_outside_of_the_view(study, seeds):
    results = of_each_study(seeds)[study]
    axes = axes_of(results)
    low, high = axes.get_ylim()
    means = [dot[1] for dot in dots(axes)] if study != "separability" else []
    means += [float(y) for line in axes.lines if not str(line.get_label()).startswith("_") for y in line.get_ydata()]
    assert means
    assert all(low < mean < high for mean in means)
    # Where seeds are many, intervals are in the view as well.
    ends = [end for *_, interval, _ in dots(axes) if interval for end in interval] if study != "separability" else []
    if seeds == 10:
        assert all(low < end < high for end in ends)


@pytest.mark.parametrize("study", STUDIES)
def test_wide_intervals_do_not_hide_the_means(study):
    # Means lie within 3 points; the intervals of two seeds reach 63 points further.
    apart = [-0.05, 0.05]
    conditions = {"augmentation": (ALL_FIVE, "crop"), "data-amount": ("1%",), "semi-supervised": ("20",)}.get(
        study, ("",)
    )
    methods = SEVEN if study == "sequential" else FOUR
    sign = {c: -1 if c == "crop" else 1 for c in conditions}
    figures = {
        (m, c): [0.5 + 0.005 * i + sign[c] * a for a in apart] for c in conditions for i, m in enumerate(methods)
    }
    if study == "separability":
        figures = {key: [{1: y, 9: y} for y in values] for key, values in figures.items()}
    low, high = axes_of(imagined(study, figures)).get_ylim()
    # Twice the range of the means more, at most.
    assert high - low <= 3 * 3 + 0.1


# Separability.

LAST_STEPS = imagined("separability", {method: [{10: 0.5}, {10: 0.6}] for method in FOUR})


@pytest.mark.parametrize("seeds", [1, 3])
def test_separability_draws_curves_of_means_and_intervals(seeds):
    results = of_each_study(seeds)["separability"]
    axes = axes_of(results)
    bands = iter(axes.collections)
    for method in FOUR[1:]:
        line, curves = line_of(axes, method), list(results.by_seed(method).values())
        assert list(line.get_xdata()) == [1, 5, 20]
        expected = [percent([curve[step] for curve in curves]) for step in (1, 5, 20)]
        assert line.get_ydata() == pytest.approx([mean for mean, _, _ in expected])
        path = next(bands).get_paths()
        if seeds == 1:
            assert not path or np.isnan(path[0].vertices[:, 1]).all() or len(path[0].vertices) == 0
            continue
        corners = {(float(x), round(float(y), 6)) for x, y in path[0].vertices}
        for step, (_, low, high) in zip((1, 5, 20), expected, strict=True):
            assert {(step, round(low, 6)), (step, round(high, 6))} <= corners
    base = line_of(axes, "Base")
    assert base.get_ydata() == pytest.approx([percent(list(results.last("Base").values()))[0]] * 2)
    assert line_of(axes, "untrained").get_ydata() == pytest.approx([30, 30])
    looks = [to_hex(line_of(axes, method).get_color()) for method in FOUR]
    assert len(set(looks)) == 4


def test_separability_has_the_milestones_as_ticks_on_a_scale_of_logarithms():
    axes = axes_of(of_each_study()["separability"])
    assert axes.get_xscale() == "log"
    assert axes.get_xlabel() == "steps of pretraining on the target"
    assert list(axes.get_xticks()) == [1, 5, 20]
    drawn_without_warnings(axes.figure)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "5", "20"]
    assert not any(label.get_text() for label in axes.get_xticklabels(minor=True))


def test_many_milestones_have_ticks_with_room_between_them():
    curve = {step: 0.5 + step / 1e5 for step in range(1000, 20001, 1000)}
    axes = axes_of(imagined("separability", {method: [curve, curve] for method in FOUR[1:]}))
    drawn_without_warnings(axes.figure)
    low, high = axes.get_xlim()
    shown = [label.get_text() for label in axes.get_xticklabels() if low <= label.get_position()[0] <= high]
    assert shown == ["1,000", "10,000"]


def test_a_step_that_a_seed_does_not_have_is_not_drawn():
    axes = axes_of(imagined("separability", {"HPT": [{1: 0.1, 2: 0.2, 4: 0.5}, {1: 0.3, 4: 0.7}], "Base": [0.4, 0.4]}))
    line = line_of(axes, "HPT")
    assert list(line.get_xdata()) == [1, 4]
    assert line.get_ydata() == pytest.approx([20, 60])


def test_methods_that_learn_are_not_said_not_to_where_only_their_last_step_is_looked_at():
    axes = axes_of(LAST_STEPS)
    assert legend(axes.figure) == ["Target", "HPT", "HPT-BN", "Base"]
    assert [line_of(axes, method).get_linestyle() for method in FOUR] == ["--", "-", "-", "-"]
    assert list(axes.get_xticks()) == [10]
    for method in FOUR[1:]:
        assert list(line_of(axes, method).get_xdata()) == [10]
        assert line_of(axes, method).get_ydata() == pytest.approx([55])


# Sequential.


@pytest.mark.parametrize("seeds", [1, 3])
def test_sequential_draws_each_sequence_in_a_place_of_its_own(seeds):
    results = of_each_study(seeds)["sequential"]
    axes = axes_of(results)
    assert [label.get_text() for label in axes.get_xticklabels()] == list(SEVEN)
    assert axes.get_xlabel() == "stages in a row: Base, Source, Target"
    found = dots(axes)
    assert [x for x, *_ in found] == list(axes.get_xticks()) == list(range(7))
    check_dots(found, [percent(list(results.last(method).values())) for method in SEVEN], seeds)
    assert line_of(axes, "untrained").get_ydata() == pytest.approx([30, 30])


def test_the_sequence_that_the_claim_is_about_is_told_apart():
    *others, best = [colour for *_, (colour, _) in dots(axes_of(of_each_study()["sequential"]))]
    assert others == [to_hex(colour) for colour in OTHER_COLOURS]
    assert len({*others, best}) == 7
    assert best == to_hex(VERMILION)


def check_dots(found, expected, seeds):
    assert len(found) == len(expected)
    for (_, y, interval, _), (mean, low, high) in zip(found, expected, strict=True):
        assert y == pytest.approx(mean)
        if seeds == 1:
            assert interval is None
            assert math.isnan(low)
        else:
            assert interval == pytest.approx((low, high))


# By condition.


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("study", BY_CONDITION)
def test_each_method_is_drawn_at_each_condition(study, seeds):
    results = of_each_study(seeds)[study]
    axes, expected = axes_of(results), expected_dots(results)
    found = sorted(dots(axes))
    # By place, from left to right in the order of the methods, near the place and apart from each other.
    check_dots(found, [expected[key] for key in expected], seeds)
    for i, (place, method) in enumerate(expected):
        assert abs(found[i][0] - place) < 0.25
        assert i == 0 or found[i][0] - found[i - 1][0] > 0.05
        # A method looks alike at all conditions, and unlike the others.
        assert found[i][3] == found[results.methods.index(method)][3]
    assert len({looks for *_, looks in found}) == len(results.methods)
    assert len({colour for *_, (colour, _) in found}) == len({m for *_, (_, m) in found}) == len(results.methods)


@pytest.mark.parametrize(
    ("study", "label", "ticks"),
    [
        ("semi-supervised", "labels", ["20", "100%"]),
        ("augmentation", "augmentations that are left", ["crop\ncolor\nblur\nflip", "crop", "none"]),
        ("data-amount", "images of the target", ["1%", "50%", "100%"]),
    ],
)
def test_the_axis_names_the_conditions(study, label, ticks):
    axes = axes_of(of_each_study()[study])
    assert axes.get_xlabel() == label
    assert [text.get_text() for text in axes.get_xticklabels()] == ticks
    assert list(axes.get_xticks()) == list(range(len(ticks)))


def looks_of(axes):
    """Colours and markers in the legend, but for the untrained network's."""
    named = zip(*axes.get_legend_handles_labels(), strict=True)
    lines = [handle.lines[0] for handle, label in named if label != "untrained network"]
    return [(to_hex(line.get_color()), line.get_marker()) for line in lines]


def test_the_legend_has_the_looks_of_what_is_drawn():
    axes = axes_of(of_each_study()["data-amount"])
    assert [label for label in axes.get_legend_handles_labels()[1] if label != "untrained network"] == list(FOUR)
    assert looks_of(axes) == [sorted(dots(axes))[number][3] for number in range(len(FOUR))]


def test_losses_are_taken_seed_by_seed():
    results = imagined("augmentation", {("HPT", ALL_FIVE): [0.9, 0.5, 0.7], ("HPT", "crop"): [0.8, 0.4, None]})
    ((_, mean, interval, _),) = dots(axes_of(results))
    assert mean == pytest.approx(10)
    assert interval == pytest.approx((10, 10))


def test_a_method_without_a_figure_at_the_first_condition_is_in_the_legend():
    results = imagined("data-amount", {("HPT", "1%"): [0.1], ("HPT", "100%"): [0.5], ("Base", "100%"): [0.4]})
    assert legend(figure(results)) == ["HPT", "Base"]
    assert list(dict.fromkeys(looks for *_, looks in dots(axes_of(results)))) == looks_of(axes_of(results))


def test_a_missing_figure_leaves_a_gap():
    results = imagined("data-amount", {("HPT", "1%"): [0.1], ("Base", "1%"): [0.2], ("HPT", "100%"): [0.5]})
    assert sorted(round(y) for _, y, *_ in dots(axes_of(results))) == [10, 20, 50]


def bands(axes):
    """The lower and upper ends of the bands around levels."""
    return [(box.get_y(), box.get_y() + box.get_height()) for box in axes.patches]


def test_levels_have_their_intervals_as_bands():
    figures = {"Base": [0.5, 0.52, 0.54], "Target": [0.4, 0.5, 0.6], "HPT": [0.5, 0.6, 0.7]}
    axes = axes_of(imagined("separability", figures, untrained=[0.51, 0.52, 0.53]))
    ends = [percent(values)[1:] for values in (figures["Base"], [0.51, 0.52, 0.53])]
    assert bands(axes) == [pytest.approx(pair) for pair in ends]


def test_a_level_of_one_seed_has_none():
    assert bands(axes_of(imagined("sequential", {"B": [0.5]}, untrained=[0.4]))) == []


def test_intervals_that_leave_the_view_are_said_to():
    results = imagined("sequential", {"B": [0.5, 0.52], "T": [0.5, 0.9]}, untrained=[0.2, 0.8])
    assert axes_of(results).get_title() == "sequential: mean and 95% interval, cut off where longer, 2 seeds"
