from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib.colors import to_hex

from hpt_mlflow.data.errors import UnreadableImageError
from hpt_mlflow.report.figures import GREEN, VERMILION
from hpt_mlflow.report.image_grids import confused_pairs, most_confused, neighbour_grid

CLASSES = ["airplane", "bird", "$cat$"]


class Counting:
    """Images that are all of the brightness of their index, and which were asked for."""

    def __init__(self, unreadable: int = -1) -> None:
        self.asked: list[int] = []
        self.unreadable = unreadable

    def __getitem__(self, index: int) -> np.ndarray:
        assert isinstance(index, int)
        self.asked.append(index)
        if index == self.unreadable:
            raise UnreadableImageError("gone")
        return np.full((8, 12, 3), index, dtype=np.uint8)


def stored(figure) -> int:
    """Bytes of the figure as it is stored."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.tell()


def brightness(figure) -> list[list[int]]:
    """Which images stand in each row, from left to right."""
    rows = {}
    for image in sorted(figure.axes[0].images, key=lambda image: image.get_extent()[0]):
        rows.setdefault(image.get_extent()[3], []).append(int(image.get_array()[0, 0, 0]))
    return [rows[top] for top in sorted(rows)]


def texts(figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def test_most_confused_come_first_and_right_ones_not_at_all():
    truth = np.array([0, 0, 0, 1, 1, 1, 1, 2, 2])
    prediction = np.array([0, 1, 1, 1, 2, 2, 2, 2, 0])
    assert most_confused(truth, prediction, 9) == [(1, 2), (0, 1), (2, 0)]
    assert most_confused(truth, prediction, 2) == [(1, 2), (0, 1)]
    assert most_confused(truth, truth, 2) == []


def test_confused_pairs_show_the_surest_mistakes():
    truth = np.array([0, 1, 1, 1, 1, 0, 0])
    prediction = np.array([1, 2, 2, 2, 1, 0, 0])
    confidence = np.array([0.6, 0.5, 0.9, 0.7, 1.0, 1.0, 1.0], dtype=np.float32)
    images = Counting()
    figure = confused_pairs(images, 10 + np.arange(7), truth, prediction, confidence, CLASSES, pairs=6, examples=2)
    assert images.asked == [12, 13, 10]
    first, second = "3 of 4\nbird\ntaken for\n\\$cat\\$", "1 of 3\nairplane\ntaken for\nbird"
    assert texts(figure) == [first, "0.90", "0.70", second, "0.60"]
    assert brightness(figure) == [[12, 13], [10]]
    assert stored(figure) > 0


def test_confused_pairs_are_none_where_nothing_is_confused():
    labels = np.array([0, 1, 2])
    assert confused_pairs(Counting(), labels, labels, labels, np.ones(3, dtype=np.float32), CLASSES) is None
    nothing = np.zeros(0, dtype=np.int64)
    assert confused_pairs(Counting(), nothing, nothing, nothing, np.zeros(0, dtype=np.float32), CLASSES) is None


def test_confused_pairs_ask_for_few_of_many_images():
    rng = np.random.default_rng(0)
    truth, prediction = rng.integers(0, 45, 250), rng.integers(0, 45, 250)
    images = Counting()
    confused_pairs(images, np.arange(250), truth, prediction, rng.random(250), [str(i) for i in range(45)])
    assert len(images.asked) <= 24


def test_an_image_that_cannot_be_read_any_more_leaves_the_others():
    truth, prediction = np.zeros(2, int), np.ones(2, int)
    figure = confused_pairs(Counting(unreadable=0), np.arange(2), truth, prediction, np.array([0.9, 0.8]), CLASSES)
    assert brightness(figure) == [[1]]
    assert "cannot\nbe read" in texts(figure)
    assert stored(figure) > 0


def frames(figure) -> list[str]:
    return [to_hex(frame.get_edgecolor()).upper() for frame in figure.axes[0].patches]


def test_neighbour_grid_frames_same_and_other_classes():
    images = Counting()
    nearest = np.array([[7, 3], [5, 9]])
    figure = neighbour_grid(images, np.array([20, 21]), np.array([0, 1]), nearest, np.array([[0, 2], [0, 1]]), CLASSES)
    assert images.asked == [20, 7, 3, 21, 5, 9]
    assert brightness(figure) == [[20, 7, 3], [21, 5, 9]]
    assert frames(figure) == [GREEN, VERMILION, VERMILION, GREEN]
    assert texts(figure) == ["airplane", "airplane", "\\$cat\\$", "bird", "airplane", "bird"]
    assert "same class" in figure.get_suptitle()
    assert stored(figure) > 0


def test_neighbour_grid_of_many_labels_names_them_and_has_no_frames():
    labels = np.array([[1, 1, 0]], dtype=np.uint8)
    neighbours = np.array([[[0, 0, 0], [0, 1, 1]]], dtype=np.uint8)
    figure = neighbour_grid(Counting(), np.array([0]), labels, np.array([[1, 2]]), neighbours, CLASSES)
    assert frames(figure) == []
    assert texts(figure) == ["airplane, bird", "none", "bird, \\$cat\\$"]
    assert "class" not in figure.get_suptitle()


@pytest.mark.parametrize("shape", [(1, 1), (8, 8), (16, 10)])
def test_pictures_of_any_photographs_stay_small(shape):
    noise = np.random.default_rng(0).integers(0, 256, (224, 224, 3)).astype(np.uint8)
    smooth = [(noise // 4 + 96).astype(np.uint8)] * 200
    labels = np.zeros(shape, dtype=np.int64)
    figure = neighbour_grid(smooth, labels[:, 0], labels[:, 0], np.arange(labels.size).reshape(shape), labels, CLASSES)
    assert stored(figure) < 1_500_000


def test_an_image_keeps_its_shape_and_its_frame_is_around_it():
    labels = np.zeros((1, 1), dtype=np.int64)
    figure = neighbour_grid(Counting(), labels[:, 0], labels[:, 0], labels, labels, CLASSES)
    left, right, bottom, top = figure.axes[0].images[1].get_extent()
    assert (right - left) / (bottom - top) == pytest.approx(12 / 8)
    (frame,) = figure.axes[0].patches
    assert frame.get_bbox().extents == pytest.approx((left, top, right, bottom))


def test_grid_of_narrow_columns_keeps_captions_apart():
    labels = np.zeros((16, 10), dtype=np.int64)
    figure = neighbour_grid(Counting(), labels[:, 0], labels[:, 0], labels, labels, ["a class with a very long name"])
    stored(figure)
    boxes = [text.get_window_extent() for text in figure.axes[0].texts if text.get_text()]
    assert not any(box.overlaps(other) for i, box in enumerate(boxes) for other in boxes[:i])
