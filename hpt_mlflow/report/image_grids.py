"""Image grids of an evaluation: the most confused classes, and the nearest neighbours of sample images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hpt_mlflow.data.errors import UnreadableImageError
from hpt_mlflow.data.images import Images
from hpt_mlflow.evaluation.neighbours import nearest_neighbours
from hpt_mlflow.evaluation.scores import is_multilabel
from hpt_mlflow.pixels import shown
from hpt_mlflow.report.figures import GREEN, GREY, VERMILION, class_label

TILE_INCHES = 1.1
CAPTION_INCHES = 0.25
TITLE_INCHES = 0.45
MARGIN_INCHES = 0.08
# Mean width of a letter of a caption, in 1/72 inch.
LETTER_POINTS = 4.2
# With more images than this in a figure, each is drawn smaller to keep the file small.
FULL_SIZE_TILES = 40
# In widths of an image.
TEXT_WIDTH = 1.6
GAP_WIDTH = 0.12
TEXT_LETTERS = 22
QUERIES, NEIGHBOURS_SHOWN = 8, 7


def confused_pairs(
    images: Images,
    indices: np.ndarray,
    truth: np.ndarray,
    prediction: np.ndarray,
    confidence: np.ndarray,
    classes: Sequence[str],
    pairs: int = 6,
    examples: int = 4,
) -> Figure | None:
    """The most frequent confusions, one pair of classes per row, with the most confident mistakes.

    Args:
        images: only those shown are read.
        indices: of the tested images, int64 (N,).
        truth, prediction: int64 (N,), indices into `classes`.
        confidence: float32 (N,), probability of the predicted class.
        pairs, examples: maximum numbers of rows, and of images per row.

    Returns:
        None if nothing is confused.
    """
    found = most_confused(truth, prediction, pairs)
    if not found:
        return None
    title = "Most frequent confusions; below an image, the probability of the wrong class"
    figure, axes, _ = _grid(title, len(found), [TEXT_WIDTH] + [1.0] * examples)
    for row, (true, predicted) in enumerate(found):
        mistaken = np.flatnonzero((truth == true) & (prediction == predicted))
        surest_first = mistaken[np.argsort(-confidence[mistaken], kind="stable")][:examples]
        text = (
            f"{len(mistaken)} of {(truth == true).sum()}\n{class_label(classes[true], TEXT_LETTERS)}\n"
            f"taken for\n{class_label(classes[predicted], TEXT_LETTERS)}"
        )
        axes[row][0].text(0, 0.5, text, fontsize=9, va="center")
        for place, i in zip(axes[row][1:], surest_first.tolist(), strict=False):
            _show(place, images, indices[i], f"{confidence[i]:.2f}")
    return figure


def most_confused(truth: np.ndarray, prediction: np.ndarray, pairs: int) -> list[tuple[int, int]]:
    """Pairs (true class, predicted class) that differ, the most frequent first.

    Args:
        truth, prediction: int64 (N,).
    """
    wrong = truth != prediction
    found, counts = np.unique(np.stack([truth[wrong], prediction[wrong]], axis=1), axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:pairs]
    return [(int(true), int(predicted)) for true, predicted in found[order]]


def sample_neighbours(
    images: Images,
    asked: np.ndarray,
    asked_features: np.ndarray,
    known: np.ndarray,
    known_features: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
) -> Figure:
    """A few images, spread over those that are asked about, with their nearest neighbours among the known ones.

    Args:
        asked, known: indices of images, int64 (M,) and (N,).
        asked_features, known_features: float32 (M, F) and (N, F).
        labels: of all images of the dataset.
    """
    shown = np.unique(np.linspace(0, len(asked) - 1, QUERIES).astype(np.int64))
    nearest = nearest_neighbours(known_features, asked_features[shown], min(NEIGHBOURS_SHOWN, len(known)))
    return neighbour_grid(images, asked[shown], labels[asked[shown]], known[nearest], labels[known[nearest]], classes)


def neighbour_grid(
    images: Images,
    queries: np.ndarray,
    query_labels: np.ndarray,
    neighbours: np.ndarray,
    neighbour_labels: np.ndarray,
    classes: Sequence[str],
) -> Figure:
    """Images and their nearest neighbours, one image per row; frames mark neighbours of the same or another class.

    Args:
        queries: indices of images, int64 (Q,).
        query_labels: int64 (Q,), or uint8 (Q, L).
        neighbours: indices of their neighbours, int64 (Q, k), the nearest first.
        neighbour_labels: int64 (Q, k), or uint8 (Q, k, L).
    """
    rows, k = neighbours.shape
    multilabel = is_multilabel(query_labels)
    title = f"Left an image, right the {k} nearest training images"
    title += "" if multilabel else "; blue-green frame: same class, red: another"
    figure, axes, letters = _grid(title, rows, [1.0, GAP_WIDTH] + [1.0] * k)
    for row in range(rows):
        _show(axes[row][0], images, queries[row], _caption(query_labels[row], classes, letters))
        for place, index, label in zip(axes[row][2:], neighbours[row], neighbour_labels[row], strict=True):
            _show(place, images, index, _caption(label, classes, letters))
            if not multilabel:
                _frame(place, GREEN if label == query_labels[row] else VERMILION)
    return figure


def _grid(title: str, rows: int, widths: Sequence[float]) -> tuple[Figure, np.ndarray, int]:
    """A figure, its axes without ticks and frames by row and column, and how many letters fit below an image.

    Args:
        widths: of the columns, 1 for an image.
    """
    tile = TILE_INCHES * min(1.0, math.sqrt(FULL_SIZE_TILES / (rows * len(widths))))
    width = tile * sum(widths) + MARGIN_INCHES * (len(widths) + 1)
    height = TITLE_INCHES + rows * (tile + CAPTION_INCHES)
    figure = Figure(figsize=(width, height))
    figure.suptitle(title, y=1 - MARGIN_INCHES / height, fontsize=8, wrap=True)
    axes = figure.subplots(rows, len(widths), squeeze=False, width_ratios=widths, subplot_kw={"frame_on": False})
    figure.subplots_adjust(
        left=MARGIN_INCHES / width,
        right=1 - MARGIN_INCHES / width,
        bottom=CAPTION_INCHES / height,
        top=1 - TITLE_INCHES / height,
        wspace=MARGIN_INCHES * len(widths) / (tile * sum(widths)),
        hspace=CAPTION_INCHES / tile,
    )
    for place in figure.axes:
        place.set(xticks=[], yticks=[])
    return figure, axes, int(72 * tile / LETTER_POINTS)


def _show(axes: Axes, images: Images, index: int, caption: str) -> None:
    """Draw an image with its caption below; a note if it cannot be read any more."""
    axes.text(0.5, -0.04, caption, transform=axes.transAxes, fontsize=7, ha="center", va="top")
    try:
        axes.imshow(shown(images[int(index)]))
    except UnreadableImageError:
        axes.text(0.5, 0.5, "cannot\nbe read", transform=axes.transAxes, fontsize=7, ha="center", color=GREY)


def _frame(axes: Axes, colour: str) -> None:
    axes.set_frame_on(True)
    axes.spines[:].set(color=colour, linewidth=3)


def _caption(label: np.ndarray, classes: Sequence[str], letters: int) -> str:
    """The caption of an image: its class, an int64 (), or its labels, uint8 (L,), in at most this many letters."""
    if label.ndim == 0:
        return class_label(classes[int(label)], letters)
    return class_label(", ".join(classes[i] for i in np.flatnonzero(label).tolist()) or "none", letters)
