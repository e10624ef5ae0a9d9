"""Image grids of an evaluation: the most confused classes, and the nearest neighbours of sample images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

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
    sheet = _sheet(title, len(found), [TEXT_WIDTH] + [1.0] * examples)
    for row, (true, predicted) in enumerate(found):
        mistaken = np.flatnonzero((truth == true) & (prediction == predicted))
        surest_first = mistaken[np.argsort(-confidence[mistaken], kind="stable")][:examples]
        text = (
            f"{len(mistaken)} of {(truth == true).sum()}\n{class_label(classes[true], TEXT_LETTERS)}\n"
            f"taken for\n{class_label(classes[predicted], TEXT_LETTERS)}"
        )
        sheet.write(row, 0, text)
        for column, i in enumerate(surest_first.tolist(), start=1):
            sheet.show(row, column, images, indices[i], f"{confidence[i]:.2f}")
    return sheet.figure


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
    sheet = _sheet(title, rows, [1.0, GAP_WIDTH] + [1.0] * k)
    for row in range(rows):
        sheet.show(row, 0, images, queries[row], _caption(query_labels[row], classes, sheet.letters))
        found = zip(neighbours[row], neighbour_labels[row], strict=True)
        for column, (index, label) in enumerate(found, start=2):
            frame = None if multilabel else GREEN if label == query_labels[row] else VERMILION
            sheet.show(row, column, images, index, _caption(label, classes, sheet.letters), frame)
    return sheet.figure


@dataclass(frozen=True)
class _Sheet:
    """A figure with places for images in rows and columns.

    One axes for all of them: matplotlib takes longer to make 64 axes than to draw 64 images.

    Attributes:
        axes: over the whole figure, in inches from its upper left corner.
        tile: side of an image, in inches.
        lefts: left edge of each column, in inches.
    """

    figure: Figure
    axes: Axes
    tile: float
    lefts: Sequence[float]

    @property
    def letters(self) -> int:
        """How many fit below an image."""
        return int(72 * self.tile / LETTER_POINTS)

    def top(self, row: int) -> float:
        return TITLE_INCHES + row * (self.tile + CAPTION_INCHES)

    def write(self, row: int, column: int, text: str) -> None:
        self.axes.text(self.lefts[column], self.top(row) + self.tile / 2, text, fontsize=9, va="center")

    def show(self, row: int, column: int, images: Images, index: int, caption: str, frame: str | None = None) -> None:
        """Draw an image with its caption below and a frame of this colour; a note if it cannot be read any more."""
        x, y = self.lefts[column] + self.tile / 2, self.top(row) + self.tile / 2
        self.axes.text(x, y + 0.54 * self.tile, caption, fontsize=7, ha="center", va="top")
        try:
            pixels = shown(images[int(index)])
        except UnreadableImageError:
            self.axes.text(x, y, "cannot\nbe read", fontsize=7, ha="center", color=GREY)
            return
        height, width = (self.tile / 2 * side / max(pixels.shape[:2]) for side in pixels.shape[:2])
        self.axes.imshow(pixels, extent=(x - width, x + width, y + height, y - height), aspect="auto")
        if frame is not None:
            corner = (x - width, y - height)
            self.axes.add_patch(Rectangle(corner, 2 * width, 2 * height, fill=False, edgecolor=frame, linewidth=3))


def _sheet(title: str, rows: int, widths: Sequence[float]) -> _Sheet:
    """An empty one.

    Args:
        widths: of the columns, 1 for an image.
    """
    tile = TILE_INCHES * min(1.0, math.sqrt(FULL_SIZE_TILES / (rows * len(widths))))
    rights = np.cumsum([MARGIN_INCHES + tile * width for width in widths])
    width, height = float(rights[-1]) + MARGIN_INCHES, TITLE_INCHES + rows * (tile + CAPTION_INCHES)
    figure = Figure(figsize=(width, height))
    figure.suptitle(title, y=1 - MARGIN_INCHES / height, fontsize=8, wrap=True)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    lefts = [float(right) - tile * width for right, width in zip(rights, widths, strict=True)]
    return _Sheet(figure, axes, tile, lefts)


def _caption(label: np.ndarray, classes: Sequence[str], letters: int) -> str:
    """The caption of an image: its class, an int64 (), or its labels, uint8 (L,), in at most this many letters."""
    if label.ndim == 0:
        return class_label(classes[int(label)], letters)
    return class_label(", ".join(classes[i] for i in np.flatnonzero(label).tolist()) or "none", letters)
