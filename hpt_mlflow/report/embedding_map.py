"""A map of the features: images that a network finds similar are close."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from hpt_mlflow.evaluation.scores import is_multilabel
from hpt_mlflow.report.figures import COLOURS, class_label

MOST_POINTS = 2000
COMPONENTS = 50
PERPLEXITY = 30
# t-SNE needs neighbourhoods, which fewer points do not have.
FEWEST_POINTS = 5
# Up to LEGEND_CLASSES are named in a legend. Of more, the NAMED_CLASSES most frequent are named on the map, the rest
# are grey.
LEGEND_CLASSES = 18
NAMED_CLASSES = 45
NAME_SIZE = 7
# A name leaves the middle of its class visible, in 1/72 inch.
FIRST_OFFSET = 12
FIGURE_INCHES = (12.0, 9.0)
MARKERS = "o^s"
REST_COLOUR = "#C8C8C8"


def embedding_map(features: np.ndarray, labels: np.ndarray | None, classes: Sequence[str], seed: int = 0) -> Figure:
    """Features in two dimensions, as a t-SNE map (van der Maaten and Hinton, JMLR 2008) coloured by class.

    At most `MOST_POINTS` images are drawn, the same share of each class. Features are brought to unit
    length, since neighbours are compared by their angle too, and reduced to `COMPONENTS` principal components.

    Args:
        features: float32 (N, F).
        labels: int64 (N,) classes, or uint8 (N, L) labels (of which only images with one have a colour), or None.
        seed: of the choice of images and of t-SNE.
    """
    groups = _groups(labels, len(features))
    chosen = _stratified(groups, MOST_POINTS, seed)
    # More threads would sum in another order, and may wait for minutes for a busy processor.
    with threadpool_limits(1):
        groups, points = groups[chosen], map_points(features[chosen], seed)
    figure = Figure(figsize=FIGURE_INCHES, layout="constrained")
    axes = figure.add_subplot(xticks=[], yticks=[])
    method = "t-SNE" if len(points) >= FEWEST_POINTS else "Two principal components"
    count = f"{len(features):,}" if len(points) == len(features) else f"{len(points):,} of {len(features):,}"
    axes.set_title(f"{method} of the features of {count} images", fontsize=10)
    present, counts = np.unique(groups[groups >= 0], return_counts=True)
    named = np.sort(present[np.argsort(-counts, kind="stable")][:NAMED_CLASSES])
    rest = ~np.isin(groups, named)
    if rest.any():
        axes.scatter(
            points[rest, 0],
            points[rest, 1],
            s=10,
            color=REST_COLOUR,
            linewidths=0,
            label=_rest_name(labels, present, named),
        )
    names = [class_label(classes[group]) for group in named]
    for place, (group, name) in enumerate(zip(named.tolist(), names, strict=True)):
        own = points[groups == group]
        axes.scatter(
            own[:, 0],
            own[:, 1],
            s=16,
            color=_colour(place),
            marker=MARKERS[place // len(COLOURS) % len(MARKERS)],
            linewidths=0,
            alpha=0.8,
            label=name,
        )
    if len(named) > LEGEND_CLASSES:
        _names_on_map(axes, points, groups, named.tolist(), names)
        if rest.any():
            axes.legend(handles=axes.collections[:1], fontsize=8)
    elif labels is not None and len(points):
        figure.legend(loc="outside right upper", fontsize=8)
    return figure


def map_points(features: np.ndarray, seed: int = 0) -> np.ndarray:
    """Features in two dimensions, float32 (N, 2): by t-SNE, or the first two components where points are too few.

    Features that are all the same lie all at 0.

    Args:
        features: float32 (N, F).
    """
    length = np.linalg.norm(features, axis=1, keepdims=True)
    unit = features / np.where(length > 0, length, 1)
    if (unit == unit[:1]).all():
        return np.zeros((len(unit), 2), dtype=np.float32)
    reduced = PCA(min(COMPONENTS, *unit.shape), random_state=seed).fit_transform(unit)
    start = np.pad(reduced[:, :2], ((0, 0), (0, max(0, 2 - reduced.shape[1])))).astype(np.float32)
    if len(unit) < FEWEST_POINTS:
        return start
    # As scikit-learn's init="pca" scales it, without computing the components again.
    start *= 1e-4 / start[:, 0].std()
    perplexity = min(PERPLEXITY, (len(unit) - 1) / 3)
    return TSNE(perplexity=perplexity, init=start, random_state=seed).fit_transform(reduced)


def _groups(labels: np.ndarray | None, count: int) -> np.ndarray:
    """The group that colours each image, int64 (N,): its class or its only label; -1 for neither."""
    if labels is None:
        return np.full(count, -1, dtype=np.int64)
    if is_multilabel(labels):
        return np.where(labels.sum(axis=1) == 1, labels.argmax(axis=1), -1)
    return labels


def _stratified(groups: np.ndarray, most: int, seed: int) -> np.ndarray:
    """Indices of at most `most` images, int64, with the same share of each group."""
    shuffled = np.random.default_rng(seed).permutation(len(groups))
    by_group = shuffled[np.argsort(groups[shuffled], kind="stable")]
    return by_group[np.linspace(0, len(by_group) - 1, min(most, len(by_group))).astype(np.int64)]


def _rest_name(labels: np.ndarray | None, present: np.ndarray, named: np.ndarray) -> str:
    """The legend of grey points."""
    others = f"{len(present) - len(named)} other classes" if len(present) > len(named) else ""
    several = "no label, or several" if labels is not None and is_multilabel(labels) else ""
    return "; ".join(text for text in (others, several) if text) or "images"


def _names_on_map(axes: Axes, points: np.ndarray, groups: np.ndarray, named: Sequence[int], names: list[str]) -> None:
    """Write each name as near to the median of its points as the names before it allow.

    Args:
        points: float32 (N, 2).
        groups: int64 (N,).
        named: the groups to name, of which `names` are the names.
    """
    low, high = points.min(axis=0), points.max(axis=0)
    size = 1.06 * np.where(high > low, high - low, 1)
    left, bottom = (low + high - size) / 2
    axes.set(xlim=(left, left + size[0]), ylim=(bottom, bottom + size[1]))
    # Typographic points (1/72 inch) of a unit of the map; the frame around the axes is thin.
    scale = 72 * (np.array(FIGURE_INCHES) - 0.3) / size
    medians = [np.median(points[groups == group], axis=0) for group in named]
    taken = [np.stack([median * scale, (3, 3)]) for median in medians]
    for place, (median, name) in enumerate(zip(medians, names, strict=True)):
        half = np.array([0.3 * NAME_SIZE * len(name) + 4, 0.5 * NAME_SIZE + 4])
        centre = median + _free_offset(median * scale, half, taken) / scale
        axes.plot(*np.stack([median, centre]).T, color="0.2", linewidth=0.7, marker=".", markevery=[0], zorder=3)
        box = {"boxstyle": "round,pad=0.2", "facecolor": (1, 1, 1, 0.85), "edgecolor": _colour(place)}
        axes.text(centre[0], centre[1], name, fontsize=NAME_SIZE, ha="center", va="center", bbox=box, zorder=4)


def _free_offset(centre: np.ndarray, half: np.ndarray, taken: list[np.ndarray]) -> np.ndarray:
    """The smallest offset of a box from its centre that overlaps none of those taken, (2,); the box is then taken.

    Args:
        centre, half: middle of the box and half its size, (2,).
        taken: middles and half sizes of other boxes, (2, 2) each; one is added.
    """
    angles = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    circle = np.stack([np.sin(angles), np.cos(angles)], axis=1)
    offsets = np.concatenate([radius * circle for radius in range(FIRST_OFFSET, 240, 6)])
    free = np.ones(len(offsets), dtype=bool)
    for other_centre, other_half in taken:
        free &= (np.abs(centre + offsets - other_centre) >= half + other_half).any(axis=1)
    offset = offsets[np.argmax(free)]
    taken.append(np.stack([centre + offset, half]))
    return offset


def _colour(place: int) -> str:
    return COLOURS[place % len(COLOURS)]
