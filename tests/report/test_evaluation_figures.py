from __future__ import annotations

import numpy as np
import pytest
from drawn import drawn
from sklearn.metrics import roc_auc_score

from hpt_mlflow.evaluation.calibration import reliability
from hpt_mlflow.report.evaluation_figures import (
    confusion_matrix,
    milestone_curve,
    reliability_diagram,
    roc_curves,
)


def overlapping(figure, *groups) -> list[tuple[str, str]]:
    """Pairs of texts of a group whose boxes overlap once drawn."""
    drawn(figure)
    found = []
    for texts in groups:
        boxes = [(text.get_text(), text.get_window_extent()) for text in texts if text.get_text()]
        found += [(a, b) for i, (a, one) in enumerate(boxes) for b, other in boxes[:i] if one.overlaps(other)]
    return found


def cells(axes) -> dict[tuple[int, int], str]:
    """Texts in the cells of a matrix by row and column."""
    return {(round(t.get_position()[1]), round(t.get_position()[0])): t.get_text() for t in axes.texts}


def names(labels) -> list[str]:
    return [label.get_text() for label in labels]


def legend_texts(legend) -> list[str]:
    return [text.get_text() for text in legend.get_texts()]


def shares(axes) -> np.ndarray:
    """Percent by row and column, from both colours of the matrix."""
    right, wrong = (image.get_array().filled(0) for image in axes.images)
    return 100 * (wrong + right) ** 2


def test_confusion_matrix_shows_shares_of_the_true_class():
    truth, prediction = np.array([0, 0, 0, 0, 1]), np.array([0, 0, 0, 1, 1])
    figure = confusion_matrix(truth, prediction, ["cat", "dog"])
    axes = figure.axes[0]
    assert shares(axes) == pytest.approx(np.array([[75, 25], [0, 100]]))
    assert cells(axes) == {(0, 0): "75", (0, 1): "25", (1, 1): "100"}
    assert names(axes.get_yticklabels()) == ["cat (4)", "dog (1)"]
    assert names(axes.get_xticklabels()) == ["cat", "dog"]
    assert figure.get_suptitle() == "80.0% of 5 images right"
    assert min(drawn(figure).size) > 300


def test_confusion_matrix_tells_right_from_wrong_by_colour():
    figure = confusion_matrix(np.array([0, 1, 1]), np.array([0, 0, 1]), ["a", "b"])
    right, wrong = figure.axes[0].images
    assert right.get_array().mask.tolist() == [[False, True], [True, False]]
    assert wrong.get_array().mask.tolist() == [[True, True], [False, True]]
    assert wrong.get_cmap().name != right.get_cmap().name


@pytest.mark.parametrize("count", [7, 60])
def test_confusion_matrix_is_readable(count):
    rng = np.random.default_rng(0)
    truth = rng.integers(0, count, 2000)
    prediction = np.where(rng.random(2000) < 0.7, truth, rng.integers(0, count, 2000))
    figure = confusion_matrix(truth, prediction, [f"a class with a very long name {i}" for i in range(count)])
    axes = figure.axes[0]
    below = [tick.label1 for tick in axes.xaxis.get_major_ticks()]
    assert len(axes.get_yticklabels()) == len(below) == count
    assert all(len(name) <= 24 and "…" in name for name in names(below))
    assert overlapping(figure, axes.texts, axes.get_yticklabels(), below) == []
    assert min(text.get_fontsize() for text in [*axes.texts, *axes.get_yticklabels()]) >= 7


def test_confusion_matrix_leaves_out_small_numbers():
    truth = np.zeros(1000, dtype=np.int64)
    prediction = np.repeat([0, 1, 2], [985, 10, 5])
    assert cells(confusion_matrix(truth, prediction, ["a", "b", "c"]).axes[0]) == {(0, 0): "98", (0, 1): "1"}


def test_confusion_matrix_of_many_classes_shows_the_most_confused():
    truth = np.arange(345).repeat(10)
    prediction = truth.copy()
    prediction[(truth == 300) & (np.arange(3450) % 10 < 8)] = 7
    prediction[(truth == 50) & (np.arange(3450) % 10 < 3)] = 51
    figure = confusion_matrix(truth, prediction, [f"class {i}" for i in range(345)])
    axes = figure.axes[0]
    rows = names(axes.get_yticklabels())
    assert len(rows) == 45
    assert rows == sorted(rows, key=lambda name: int(name.split()[1]))
    assert {"class 7 (10)", "class 300 (10)", "class 50 (10)", "class 51 (10)"} <= set(rows)
    assert names(axes.get_xticklabels())[-1] == "any other class"
    assert "of 345 classes, the 45 with the most frequent confusions" in figure.get_suptitle()
    assert max(drawn(figure).size) < 2000


def test_confusion_matrix_of_many_classes_adds_what_it_does_not_show():
    rng = np.random.default_rng(0)
    truth, prediction = rng.integers(0, 100, 3000), rng.integers(0, 100, 3000)
    axes = confusion_matrix(truth, prediction, [str(i) for i in range(100)]).axes[0]
    assert shares(axes).sum(axis=1) == pytest.approx(np.full(45, 100))


def test_confusion_matrix_takes_a_class_without_test_images():
    figure = confusion_matrix(np.array([0]), np.array([0]), ["a", "b"])
    assert names(figure.axes[0].get_yticklabels()) == ["a (1)", "b (0)"]
    assert cells(figure.axes[0]) == {(0, 0): "100"}
    drawn(figure)


def test_class_names_are_text_and_not_mathematics():
    classes = ["$x_1$ and $", "Vögel", "a\\$b^2$", r"$\frac", "Ωλήνα", "a\nb\tc", "\udcff", ""]
    labels = np.arange(len(classes))
    figure = confusion_matrix(labels, labels, classes)
    drawn(figure)
    assert names(figure.axes[0].get_xticklabels())[5:] == ["a b c", "?", ""]
    pixels = [
        np.asarray(drawn(confusion_matrix(np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64), [name, "b"])))
        for name in ("$x_1$", "x_1")
    ]
    assert not np.array_equal(*pixels)


@pytest.mark.parametrize("multilabel", [False, True])
def test_reliability_diagram_shows_bins_counts_and_error(multilabel):
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(4), 200).astype(np.float32)
    truth = rng.integers(0, 2, (200, 4)).astype(np.uint8) if multilabel else rng.integers(0, 4, 200)
    figure = reliability_diagram(truth, probabilities)
    upper, lower = figure.axes
    assert (
        upper.get_title()
        == f"Expected calibration error {reliability(truth, probabilities).expected_calibration_error:.3f}"
    )
    counts = [bar.get_height() for bar in lower.patches]
    assert len(counts) == 15
    assert sum(counts) == (800 if multilabel else 200)
    assert [text.get_text() for text in lower.texts] == [f"{count:,.0f}" if count else "" for count in counts]
    drawn(figure)


def test_reliability_diagram_draws_the_gap_between_accuracy_and_confidence():
    upper = reliability_diagram(np.array([0, 1]), np.array([[0.9, 0.1], [0.9, 0.1]], dtype=np.float32)).axes[0]
    accuracy, gap = (container.patches[13] for container in upper.containers)
    assert accuracy.get_height() == 0.5
    assert (gap.get_y(), gap.get_height()) == pytest.approx((0.5, 0.4))


def test_reliability_diagram_of_one_sure_image():
    drawn(reliability_diagram(np.array([1]), np.array([[0.0, 1.0]], dtype=np.float32)))


def test_roc_curves_are_ordered_by_their_area():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, (50, 3)).astype(np.uint8)
    truth[:, 2] = 0
    probabilities = rng.random((50, 3), dtype=np.float32)
    probabilities[:, 1] = 0.5 * truth[:, 1] + 0.4 * probabilities[:, 1]
    figure = roc_curves(truth, probabilities, ["noise", "clear $", "absent"])
    axes = figure.axes[0]
    area = roc_auc_score(truth[:, 0], probabilities[:, 0])
    assert legend_texts(axes.get_legend()) == ["1.000  clear \\$", f"{area:.3f}  noise"]
    assert (
        axes.get_title()
        == f"Mean AUROC of 2 labels: {(1 + area) / 2:.3f}\nwithout a curve, being on all images or on none: 1"
    )
    for line, expected in zip(axes.lines[1:], (1, area), strict=True):
        assert np.trapezoid(line.get_ydata(), line.get_xdata()) == pytest.approx(expected)
    drawn(figure)


def test_roc_curves_of_many_labels_are_the_best_and_the_worst():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, (60, 80)).astype(np.uint8)
    probabilities = (truth * np.linspace(0, 1, 80) + rng.random((60, 80))).astype(np.float32)
    figure = roc_curves(truth, probabilities, [f"label {i}" for i in range(80)])
    axes = figure.axes[0]
    areas = sorted((roc_auc_score(truth[:, i], probabilities[:, i]) for i in range(80)), reverse=True)
    shown = [text.split()[0] for text in legend_texts(axes.get_legend())]
    assert shown == [f"{area:.3f}" for area in areas[:9] + areas[-9:]]
    assert "shown: the 9 largest and the 9 smallest" in axes.get_title()
    assert overlapping(figure, axes.get_legend().get_texts()) == []


def test_roc_curves_without_any_answer_to_learn_from():
    figure = roc_curves(np.zeros((3, 2), dtype=np.uint8), np.zeros((3, 2), dtype=np.float32), ["a", "b"])
    assert figure.axes[0].get_title() == "No AUROC\nwithout a curve, being on all images or on none: 2"
    drawn(figure)


def test_milestone_curve_is_sorted_by_steps():
    steps, scores = [1000, 100, 10_000], [0.6, 0.5, 0.7]
    figure = milestone_curve(steps, scores, [0.5, 0.4, 0.6], [0.7, 0.6, 0.8], "accuracy", 0.3)
    axes = figure.axes[0]
    assert axes.lines[0].get_xydata().tolist() == [[100, 0.5], [1000, 0.6], [10_000, 0.7]]
    texts = legend_texts(figure.legends[0])
    assert "untrained network: 0.300" in texts
    assert axes.get_xscale() == "symlog"
    assert overlapping(figure, [*axes.get_xticklabels(), *figure.legends[0].get_texts()]) == []


@pytest.mark.parametrize(
    ("steps", "scale"),
    [
        ([5], "linear"),
        ([0], "linear"),
        ([0, 2], "linear"),
        ([10, 100], "linear"),
        ([10, 200], "symlog"),
        ([0, 10, 200], "symlog"),
        ([0, 1, 1_000_000], "symlog"),
        ([1, 20_000_000], "symlog"),
    ],
)
def test_milestone_curve_is_logarithmic_over_more_than_a_decade(steps, scale):
    scores = [0.5] * len(steps)
    figure = milestone_curve(steps, scores, scores, scores, "accuracy")
    axes = figure.axes[0]
    assert axes.get_xscale() == scale
    assert overlapping(figure, axes.get_xticklabels()) == []


def test_milestone_curve_shows_the_interval():
    axes = milestone_curve([1, 2], [0.5, 0.6], [0.4, 0.5], [0.7, 0.8], "accuracy").axes[0]
    corners = {tuple(corner) for corner in axes.collections[0].get_paths()[0].vertices.round(3).tolist()}
    assert {(1, 0.4), (1, 0.7), (2, 0.5), (2, 0.8)} == corners
