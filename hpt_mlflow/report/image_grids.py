"""Image grids of an evaluation: the most confused classes, and the nearest neighbours of sample images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hpt_mlflow.data.decode import UnreadableImageError
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


class ImageSource(Protocol):
    """Returns the image at an index, uint8 (height, width, 3): a list, or an object that decodes on demand."""

    def __getitem__(self, index: int, /) -> np.ndarray: ...


def confused_pairs(
    images: ImageSource,
    truth: np.ndarray,
    prediction: np.ndarray,
    confidence: np.ndarray,
    classes: Sequence[str],
    pairs: int = 6,
    examples: int = 4,
) -> Figure | None:
    """The most frequent confusions, one pair of classes per row, with the most confident mistakes.

    Args:
        images: image i belongs to truth[i]; only those shown are read.
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
            _show(place, images, i, f"{confidence[i]:.2f}")
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


def neighbour_grid(
    images_asked: ImageSource,
    asked_labels: np.ndarray | None,
    images_known: ImageSource,
    neighbour_indices: np.ndarray,
    neighbour_labels: np.ndarray | None,
    classes: Sequence[str],
) -> Figure:
    """Images and their nearest neighbours, one image per row; frames mark neighbours of the same or another class.

    Args:
        images_asked: Q images.
        asked_labels: int64 (Q,), or uint8 (Q, L), or None.
        images_known: what `neighbour_indices` are indices into.
        neighbour_indices: int64 (Q, k), the nearest first.
        neighbour_labels: int64 (Q, k), or uint8 (Q, k, L), or None.
    """
    queries, k = neighbour_indices.shape
    framed = asked_labels is not None and neighbour_labels is not None and asked_labels.ndim == 1
    title = f"Left an image, right the {k} nearest training images"
    title += "; blue-green frame: same class, red: another" if framed else ""
    figure, axes, letters = _grid(title, queries, [1.0, GAP_WIDTH] + [1.0] * k)
    for row in range(queries):
        _show(axes[row][0], images_asked, row, _caption(asked_labels, row, classes, letters))
        labels = None if neighbour_labels is None else neighbour_labels[row]
        for column, index in enumerate(neighbour_indices[row].tolist()):
            place = axes[row][2 + column]
            _show(place, images_known, index, _caption(labels, column, classes, letters))
            if framed and asked_labels is not None and labels is not None:
                _frame(place, GREEN if labels[column] == asked_labels[row] else VERMILION)
    return figure


def _grid(title: str, rows: int, widths: Sequence[float]) -> tuple[Figure, list[list[Axes]], int]:
    """A figure, its axes without ticks and frames by row and column, and how many letters fit below an image.

    Args:
        widths: of the columns, 1 for an image.
    """
    tile = TILE_INCHES * min(1.0, math.sqrt(FULL_SIZE_TILES / max(1, rows * len(widths))))
    lefts = MARGIN_INCHES + np.cumsum([0, *(tile * relative + MARGIN_INCHES for relative in widths)])
    width, height = lefts[-1], TITLE_INCHES + rows * (tile + CAPTION_INCHES)
    figure = Figure(figsize=(width, height))
    figure.suptitle(title, y=1 - MARGIN_INCHES / height, fontsize=8, wrap=True)
    bottoms = [height - TITLE_INCHES - row * (tile + CAPTION_INCHES) - tile for row in range(rows)]
    axes = [
        [
            figure.add_axes((left / width, bottom / height, tile * relative / width, tile / height), frame_on=False)
            for left, relative in zip(lefts, widths, strict=False)
        ]
        for bottom in bottoms
    ]
    for place in figure.axes:
        place.set(xticks=[], yticks=[])
    return figure, axes, int(72 * tile / LETTER_POINTS)


def _show(axes: Axes, images: ImageSource, index: int, caption: str) -> None:
    """Draw an image with its caption below; a note if it cannot be read any more."""
    axes.text(0.5, -0.04, caption, transform=axes.transAxes, fontsize=7, ha="center", va="top")
    try:
        axes.imshow(images[index])
    except UnreadableImageError:
        axes.text(0.5, 0.5, "cannot\nbe read", transform=axes.transAxes, fontsize=7, ha="center", color=GREY)


def _frame(axes: Axes, colour: str) -> None:
    axes.set_frame_on(True)
    axes.spines[:].set(color=colour, linewidth=3)


def _caption(labels: np.ndarray | None, position: int, classes: Sequence[str], letters: int) -> str:
    """The caption of an image: its label or labels.

    Args:
        labels: int64 (N,), or uint8 (N, L), or None.
        letters: maximum length.
    """
    if labels is None:
        return ""
    if labels.ndim == 1:
        return class_label(classes[labels[position]], letters)
    return class_label(", ".join(classes[i] for i in np.flatnonzero(labels[position]).tolist()) or "none", letters)
