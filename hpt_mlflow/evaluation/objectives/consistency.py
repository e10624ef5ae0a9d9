"""Whether a view of an image has the same neighbours as the image itself: a judge that needs no labels.

Features that serve well put the same images around an image and around a crop of it. Unlike the number of dimensions
that the features use (RankMe, arXiv 2210.02885), this falls when BatchNorm's statistics no longer fit: docs/adapting.md
compares such figures.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import v2

from hpt_mlflow.evaluation.objectives.base import Examples, Judge

NEIGHBOURS = 10
# A view that leaves an image easy to recognise: at least this share of its area, possibly flipped.
SMALLEST_CROP = 0.5


class ConsistencyJudge(Judge):
    """The share of the 10 nearest neighbours of an image that are also those of a view of it, in [0, 1]."""

    examples_per_image = 2

    def examples(self, backbone: nn.Module, part: np.ndarray) -> Examples:
        """Features of each image and of its view, side by side; there are no targets."""
        reader = replace(self.reader, batch_size=max(1, self.reader.batch_size // 2))
        features = reader.features(_WithView(backbone, reader.image_size), part)  # N x 2F
        return Examples(features, np.zeros_like(part), part)

    def score_of(self, examples: Examples) -> float:
        """See `Judge.score_of`."""
        images, views = torch.from_numpy(examples.features).chunk(2, dim=1)
        return agreement(nearest(images, images), nearest(views, images))


def nearest(queries: Tensor, images: Tensor) -> Tensor:
    """The nearest images of each query by cosine similarity, but for the image with its own number.

    Args:
        queries, images: features, float32 (N, F).

    Returns:
        int64 (N, 10), or (N, N - 1) if there are fewer.
    """
    similarity = F.normalize(queries, dim=1) @ F.normalize(images, dim=1).T
    return similarity.fill_diagonal_(-torch.inf).topk(min(NEIGHBOURS, len(images) - 1), dim=1).indices


def agreement(one: Tensor, other: Tensor) -> float:
    """The share of neighbours that two lists have in common, mean over their rows; int64 (N, k) each."""
    return float((one[:, :, None] == other[:, None, :]).any(dim=2).float().mean())


class _WithView(nn.Module):
    """A backbone applied to each image and to a view of it: float32 (N, channels, S, S) to (N, 2F)."""

    def __init__(self, backbone: nn.Module, image_size: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.view = v2.Compose([v2.RandomResizedCrop(image_size, (SMALLEST_CROP, 1.0)), v2.RandomHorizontalFlip()])

    def forward(self, batch: Tensor) -> Tensor:
        views = torch.stack([self.view(image) for image in batch])
        features: Tensor = self.backbone(torch.cat([batch, views])).flatten(1)  # 2N x F
        return torch.cat(features.chunk(2), dim=1)
