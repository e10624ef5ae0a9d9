"""Figures of a training, drawn without a display, and what all figures share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from hpt_mlflow.pixels import shown

CURVES = (
    ("train/loss", "InfoNCE loss"),
    ("train/top1", "positive key ranked first"),
    ("train/teacher_entropy", "entropy of the teacher"),
    ("train/kl", "KL of student and teacher"),
    ("train/effective_rank", "effective rank of the keys"),
    ("knn/val_accuracy", "20-NN accuracy on validation"),
)
GRID_IMAGES = 12
GRID_PIXELS = 72
# Okabe and Ito's colours without black and yellow, distinguishable with any colour vision.
BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
COLOURS = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY)
GREY = "#999999"


def class_label(name: str, length: int = 24) -> str:
    """A class's name as text in a figure: on one line, shortened in its middle, with dollar signs escaped."""
    shown = " ".join(name.encode(errors="replace").decode().split())
    if len(shown) > length:
        tail = length // 3
        shown = f"{shown[: length - 1 - tail]}…{shown[len(shown) - tail :]}"
    return shown.replace("$", r"\$")


def plain_axes(xlabel: str, ylabel: str, height: float = 4.2) -> tuple[Figure, Axes]:
    """A figure with one grid to draw in, without a frame above and on the right.

    Args:
        height: of the figure, in inches.
    """
    figure = Figure(figsize=(6.5, height), layout="constrained")
    axes = figure.add_subplot(xlabel=xlabel, ylabel=ylabel)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def views_grid(crops: Tensor, views: Sequence[Tensor], mean: Tensor, std: Tensor) -> Image.Image:
    """Images as they are cropped, and the views that the method compares, one image per column.

    Args:
        crops: uint8 or uint16 (N, channels, size, size), crops of the first view before any colour changed.
        views: of each image, float32 (N, channels, size, size), normalised; of any sizes.
        mean, std: what they were normalised with, float32 (channels,).
    """
    white = torch.iinfo(crops.dtype).max
    rows = [crops.cpu().numpy()]
    for view in views:
        pixels = view.cpu() * std.cpu().view(-1, 1, 1) + mean.cpu().view(-1, 1, 1)
        rows.append((pixels * white).round().clamp(0, white).numpy().astype(rows[0].dtype))
    n = min(GRID_IMAGES, len(crops))
    tiles = [np.concatenate([shown(image) for image in row[:n].transpose(0, 2, 3, 1)], axis=1) for row in rows]
    size = n * GRID_PIXELS, GRID_PIXELS
    same_size = [np.asarray(Image.fromarray(row).resize(size, Image.Resampling.NEAREST)) for row in tiles]
    return Image.fromarray(np.concatenate(same_size))


def learning_curves(history: Sequence[tuple[int, dict[str, float]]]) -> Figure:
    """Loss and other signs of learning against optimiser steps.

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
