"""Figures of a backbone that need no labels and might foresee how well its features predict them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpt_mlflow.augment.draws import draw_crops, draw_finish
from hpt_mlflow.augment.subset import Strengths
from hpt_mlflow.augment.views import crop_views, finish_views
from hpt_mlflow.evaluation.features import FeatureReader, FrozenNetwork
from hpt_mlflow.evaluation.objectives.consistency import agreement, nearest
from hpt_mlflow.models.diagnostics import effective_rank

SEED = 0
VIEWS = 2
# What leaves an image easy to recognise.
SUBSET, STRENGTHS = ("crop", "flip"), Strengths(crop_scale=(0.5, 1.0))
# Eigenvalues before and after these ranks do not follow the power law.
FIRST_RANK, LAST_RANK = 4, 100
# Added to the diagonal of the within-class covariance.
LIDAR_DELTA = 1e-4


class Candidates:
    """The figures of any backbone, always from the same images and views."""

    names = ("rankme", "centred rank", "alpha", "lidar", "retrieval", "parent's neighbours")

    def __init__(self, reader: FeatureReader, indices: np.ndarray, parent: nn.Module) -> None:
        """
        Args:
            indices: the images to look at; each is looked at 3 times.
        """
        rng = np.random.default_rng(SEED)
        decoded = [image for image in map(reader.read, indices.tolist()) if not isinstance(image, str)]
        crops = crop_views(decoded, reader.image_size, SUBSET, STRENGTHS, draw_crops(rng, len(decoded), VIEWS))
        mean, std = torch.tensor(reader.statistics.mean), torch.tensor(reader.statistics.std)
        self._reader, self._indices = reader, indices
        self._views = [
            finish_views(crop, draw_finish(rng, len(decoded), SUBSET, STRENGTHS), STRENGTHS, mean, std)
            for crop in crops
        ]
        of_parent = torch.from_numpy(reader.features(parent, indices))
        self._near_parent = nearest(of_parent, of_parent)

    def figures(self, backbone: nn.Module) -> dict[str, float]:
        """All figures by name."""
        network = FrozenNetwork(backbone)
        images = torch.from_numpy(self._reader.features(backbone, self._indices))
        views = [torch.cat([network.features(part) for part in view.split(256)]) for view in self._views]
        near = nearest(images, images)
        return {
            "rankme": effective_rank(images),
            "centred rank": effective_rank(images - images.mean(dim=0)),
            "alpha": -abs(1 - power_law(images)),
            "lidar": lidar(torch.stack(views, dim=1)),
            "retrieval": retrieval(*views),
            "parent's neighbours": agreement(near, self._near_parent),
        }


def retrieval(one: Tensor, other: Tensor) -> float:
    """How often the other view of an image is the nearest of all other views."""
    similarity = F.normalize(one, dim=1) @ F.normalize(other, dim=1).T
    return float((similarity.argmax(dim=1) == torch.arange(len(one))).float().mean())


def power_law(features: Tensor) -> float:
    """Alpha-ReQ (Agrawal et al., arXiv 2202.05808): the exponent with which the eigenvalues of the covariance fall."""
    centred = (features - features.mean(dim=0)).double()
    eigenvalues = torch.linalg.svdvals(centred).square().numpy()
    ranks = np.arange(1, len(eigenvalues) + 1)
    kept = slice(FIRST_RANK - 1, LAST_RANK)
    return float(-np.polyfit(np.log(ranks[kept]), np.log(eigenvalues[kept] + 1e-12), 1)[0])


def lidar(groups: Tensor) -> float:
    """LiDAR (Thilak et al., arXiv 2312.04000): effective rank of a linear discriminant analysis; classes are images.

    Args:
        groups: features of the views of each image, float32 (N, views, F).
    """
    groups = groups.double()
    means = groups.mean(dim=1)
    between = torch.cov(means.T)
    rest = (groups - means[:, None]).flatten(0, 1)
    within = rest.T @ rest / (len(rest) - len(means)) + LIDAR_DELTA * torch.eye(rest.shape[1], dtype=rest.dtype)
    values, vectors = torch.linalg.eigh(within)
    whitening = vectors / values.sqrt() @ vectors.T
    spectrum = torch.linalg.eigvalsh(whitening @ between @ whitening).clamp_min(0)
    shares = spectrum / spectrum.sum()
    return float(torch.exp(torch.special.entr(shares).sum()))
