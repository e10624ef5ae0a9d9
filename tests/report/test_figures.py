from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from hpt_mlflow.report.figures import class_label, learning_curves, views_grid

MEAN, STD = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3])


def drawn(figure) -> Image.Image:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=50)
    return Image.open(file)


def normalised(crops: torch.Tensor) -> torch.Tensor:
    return (crops.float() / 255 - MEAN.view(3, 1, 1)) / STD.view(3, 1, 1)


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (5, 5), (20, 12)])
def test_views_grid_has_one_image_a_column(count, columns):
    generator = torch.Generator().manual_seed(0)
    crops = torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=generator)
    inverted = 255 - crops
    grid = views_grid(crops, [normalised(crops), normalised(inverted)], MEAN, STD)
    assert grid.size == (columns * 72, 3 * 72)
    assert grid.mode == "RGB"
    pixels = np.asarray(grid)
    for row, expected in enumerate((crops, crops, inverted)):
        for column in range(columns):
            tile = pixels[row * 72 : (row + 1) * 72, column * 72 : (column + 1) * 72]
            enlarged = expected[column].permute(1, 2, 0).numpy().repeat(9, axis=0).repeat(9, axis=1)
            assert np.array_equal(tile, enlarged)


def test_views_of_another_size_are_drawn_as_large():
    rng = np.random.default_rng(0)
    crops, small = (torch.from_numpy(rng.integers(0, 256, (2, 3, side, side), dtype=np.uint8)) for side in (8, 4))
    grid = np.asarray(views_grid(crops, [normalised(crops), normalised(small)], MEAN, STD))
    assert grid.shape == (3 * 72, 2 * 72, 3)
    for column in range(2):
        enlarged = small[column].permute(1, 2, 0).numpy().repeat(18, axis=0).repeat(18, axis=1)
        assert np.array_equal(grid[144:, column * 72 : (column + 1) * 72], enlarged)


def test_views_grid_clips_what_is_brighter_than_white():
    crops = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    view = torch.full((1, 3, 4, 4), 100.0)
    pixels = np.asarray(views_grid(crops, [view, -view], MEAN, STD))
    assert pixels[72:144].min() == 255
    assert pixels[144:].max() == 0


def test_learning_curves_show_what_the_history_has():
    history = [(10, {"train/loss": 3.0, "train/top1": 0.1, "other": 1.0}), (15, {}), (20, {"train/loss": 2.0})]
    figure = learning_curves(history)
    assert [axes.get_title() for axes in figure.axes] == ["InfoNCE loss", "positive key ranked first"]
    loss, top1 = (axes.lines[0].get_xydata().tolist() for axes in figure.axes)
    assert loss == [[10, 3.0], [20, 2.0]]
    assert top1 == [[10, 0.1]]
    assert drawn(figure).width > drawn(figure).height


@pytest.mark.parametrize("history", [[], [(1, {})], [(1, {"train/images_per_second": 5.0})]])
def test_learning_curves_of_nothing_are_an_empty_figure(history):
    figure = learning_curves(history)
    assert figure.axes == []
    assert min(drawn(figure).size) > 0


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("cat", "cat"),
        ("a class with a long name 12", "a class with a … name 12"),
        ("one\n two\t", "one two"),
        ("$5 and $6", r"\$5 and \$6"),
        ("Vögel \udcff", "Vögel ?"),
    ],
)
def test_class_label_is_one_short_line_of_plain_text(name, label):
    assert class_label(name) == label


def test_class_label_keeps_both_ends():
    label = class_label("abcdefghijklmnopqrstuvwxyz", 10)
    assert label == "abcdef…xyz"
