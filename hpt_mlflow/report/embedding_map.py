"""A map of the features: images that a network finds similar are close."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
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
MARKERS = "o^s"
# As many classes as colours and markers can tell apart; the rest is grey.
NAMED_CLASSES = len(COLOURS) * len(MARKERS)
REST_COLOUR = "#C8C8C8"


def embedding_map(features: np.ndarray, labels: np.ndarray, classes: Sequence[str], seed: int = 0) -> Figure | None:
    """Features in two dimensions, as a t-SNE map (van der Maaten and Hinton, JMLR 2008) coloured by class.

    At most `MOST_POINTS` images are drawn, the same share of each class. The most frequent `NAMED_CLASSES` classes
    have a colour.

    Args:
        features: float32 (N, F).
        labels: int64 (N,) classes, or uint8 (N, L) labels (of which only images with one have a colour).
        seed: of the choice of images and of t-SNE.

    Returns:
        None for fewer than `FEWEST_POINTS` images.
    """
    if len(features) < FEWEST_POINTS:
        return None
    groups = np.where(labels.sum(axis=1) == 1, labels.argmax(axis=1), -1) if is_multilabel(labels) else labels
    drawn = _stratified(groups, MOST_POINTS, seed)
    # More threads would sum in another order, and may wait for minutes for a busy processor.
    with threadpool_limits(1):
        groups, points = groups[drawn], map_points(features[drawn], seed)
    figure = Figure(figsize=(12, 9), layout="constrained")
    axes = figure.add_subplot(xticks=[], yticks=[])
    count = f"{len(features):,}" if len(points) == len(features) else f"{len(points):,} of {len(features):,}"
    axes.set_title(f"t-SNE of the features of {count} images", fontsize=10)
    present, counts = np.unique(groups[groups >= 0], return_counts=True)
    named = np.sort(present[np.argsort(-counts, kind="stable")][:NAMED_CLASSES])
    rest = ~np.isin(groups, named)
    x, y = points.T
    if rest.any():
        other_classes = f"{len(present) - len(named)} other classes" if len(present) > len(named) else ""
        several = "no label, or several" if is_multilabel(labels) else ""
        name = "; ".join(text for text in (other_classes, several) if text)
        axes.scatter(x[rest], y[rest], s=10, color=REST_COLOUR, linewidths=0, label=name)
    for place, group in enumerate(named.tolist()):
        own = groups == group
        axes.scatter(
            x[own],
            y[own],
            s=16,
            color=COLOURS[place % len(COLOURS)],
            marker=MARKERS[place // len(COLOURS)],
            linewidths=0,
            alpha=0.8,
            label=class_label(classes[group]),
        )
    figure.legend(loc="outside right upper", fontsize=8)
    return figure


def map_points(features: np.ndarray, seed: int = 0) -> np.ndarray:
    """Features in two dimensions by t-SNE, float32 (N, 2); all at 0 if all features are the same.

    Features are brought to unit length, since neighbours are compared by their angle too, and reduced to `COMPONENTS`
    principal components.

    Args:
        features: float32 (N, F).
    """
    length = np.linalg.norm(features, axis=1, keepdims=True)
    unit = features / np.where(length > 0, length, 1)
    if (unit == unit[:1]).all():
        return np.zeros((len(unit), 2), dtype=np.float32)
    reduced = PCA(min(COMPONENTS, *unit.shape), random_state=seed).fit_transform(unit)
    perplexity = min(PERPLEXITY, (len(unit) - 1) / 3)
    start = "pca" if reduced.shape[1] > 1 else "random"
    return TSNE(perplexity=perplexity, init=start, random_state=seed).fit_transform(reduced)


def _stratified(groups: np.ndarray, most: int, seed: int) -> np.ndarray:
    """Indices of at most `most` images, int64, with the same share of each group."""
    shuffled = np.random.default_rng(seed).permutation(len(groups))
    by_group = shuffled[np.argsort(groups[shuffled], kind="stable")]
    return by_group[np.linspace(0, len(by_group) - 1, min(most, len(by_group))).astype(np.int64)]
