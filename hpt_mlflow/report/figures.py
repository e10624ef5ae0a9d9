"""Pictures for the run: made without a display, returned to whoever logs them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

CURVES = (
    ("train/loss", "InfoNCE loss"),
    ("train/top1", "positive key ranked first"),
    ("train/effective_rank", "effective rank of the keys"),
    ("knn/val_accuracy", "20-NN accuracy on validation"),
)
GRID_IMAGES = 12
GRID_PIXELS = 72


def views_grid(crops: Tensor, views: Sequence[Tensor], mean: Tensor, std: Tensor) -> Image.Image:
    """Images as they are cropped, and the two views that MoCo compares, one image a column.

    Args:
        crops: uint8 (N, 3, size, size), crops of the first view before any colour changed.
        views: two tensors, float32 (N, 3, size, size), normalised.
        mean, std: what they were normalised with, float32 (3,).
    """
    rows = [crops.cpu()]
    for view in views:
        pixels = view.cpu() * std.cpu().view(3, 1, 1) + mean.cpu().view(3, 1, 1)
        rows.append((pixels * 255).round().clamp(0, 255).to(torch.uint8))
    n = min(GRID_IMAGES, len(crops))
    tiles = [torch.cat(list(row[:n].permute(0, 2, 3, 1)), dim=1) for row in rows]
    grid = Image.fromarray(torch.cat(tiles, dim=0).numpy())
    return grid.resize((n * GRID_PIXELS, len(rows) * GRID_PIXELS), Image.Resampling.NEAREST)


def learning_curves(history: Sequence[tuple[int, dict[str, float]]]) -> Figure:
    """Loss and what else shows learning, against optimiser steps.

    Args:
        history: step and metrics by name.
    """
    present = [(key, title) for key, title in CURVES if any(key in metrics for _, metrics in history)]
    figure = Figure(figsize=(4.2 * max(1, len(present)), 3.2), layout="constrained")
    for i, (key, title) in enumerate(present, start=1):
        points = [(step, metrics[key]) for step, metrics in history if key in metrics]
        axes = figure.add_subplot(1, len(present), i)
        axes.plot(*zip(*points, strict=True), marker="o" if len(points) < 12 else None, color="tab:blue")
        axes.set(title=title, xlabel="optimiser steps")
        axes.grid(alpha=0.3)
    return figure


def confusion_matrix(truth: np.ndarray, prediction: np.ndarray, classes: Sequence[str]) -> Figure:
    """Share of each true class (row) that was taken for each class (column), in percent.

    Args:
        truth, prediction: int64 (N,), indices into `classes`.
    """
    n = len(classes)
    counts = np.zeros((n, n))
    np.add.at(counts, (truth, prediction), 1)
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(16.0, 3.0 + 0.32 * n)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    font_size = 8 if n <= 40 else 5
    axes.set_xticks(range(n), classes, rotation=90, fontsize=font_size)
    axes.set_yticks(range(n), classes, fontsize=font_size)
    axes.set(xlabel="predicted", ylabel="true")
    if n <= 40:
        for row, column in zip(*np.nonzero(shares >= 0.5), strict=True):
            color = "white" if shares[row, column] > 55 else "black"
            axes.text(column, row, f"{shares[row, column]:.0f}", ha="center", va="center", fontsize=6, color=color)
    figure.colorbar(image, label="% of the true class", shrink=0.7)
    return figure
