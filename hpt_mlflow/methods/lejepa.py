"""LeJEPA (Balestriero & LeCun, arXiv 2511.08544): views of an image predict their mean, and all are Gaussian together.

It has neither a teacher nor a queue. What keeps embeddings apart is SIGReg: along any direction, those of a batch are
to be distributed as a standard normal variable.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from hpt_mlflow.group import ALONE, Group
from hpt_mlflow.methods.base import Method, Step, StepResult, Views
from hpt_mlflow.methods.byol import GroupBatchNorm

# As in the authors' example (MINIMAL.md of rbalestr-lab/lejepa), also the directions that are drawn anew in each step,
# and the points at which characteristic functions are compared.
HIDDEN_SIZE, PROJECTION_SIZE = 2048, 16
DIRECTIONS, POINTS, LAST_POINT = 256, 17, 3.0
# Of SplitMix64, as signed numbers of 64 bits.
_GOLDEN, _MIX = 0x9E3779B97F4A7C15 - 2**64, (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)


class LeJEPA(Method):
    """One encoder: a backbone and a projector of three layers, with the batch statistics of all processes.

    All views are embedded as one batch. They are of one size here, where the paper has large and small ones.

    Options:
        sigreg_weight: share of SIGReg in the loss (lambda).
    """

    title = "LeJEPA"
    views = 4
    # Forward and backward of each view.
    passes = 3 * views
    metrics = ("prediction", "sigreg")
    capturable = True

    def __init__(
        self, backbone: nn.Module, feature_size: int, options: Mapping[str, Any], group: Group = ALONE
    ) -> None:
        super().__init__(backbone, feature_size, options, group)
        self.sigreg_weight: float = options["sigreg_weight"]
        self.encoder = nn.Sequential(backbone, nn.Flatten())
        self.projector = nn.Sequential(
            nn.Linear(feature_size, HIDDEN_SIZE),
            GroupBatchNorm(HIDDEN_SIZE, group),
            nn.ReLU(),
            nn.Linear(HIDDEN_SIZE, HIDDEN_SIZE),
            GroupBatchNorm(HIDDEN_SIZE, group),
            nn.ReLU(),
            nn.Linear(HIDDEN_SIZE, PROJECTION_SIZE),
        )

    @property
    @override
    def backbone(self) -> nn.Module:
        return self.encoder[0]

    @property
    @override
    def networks(self) -> Sequence[nn.Module]:
        return self.encoder, self.projector

    @override
    def forward(self, views: Views, step: Step) -> StepResult:
        """Both terms of the loss."""
        images = torch.cat([views[number] for number in range(self.views)])  # Vn x channels x H x W
        embeddings = self.projector(self.encoder(images)).float().view(self.views, -1, PROJECTION_SIZE)  # V x n x d
        prediction = distance_to_mean(embeddings)
        everyone = self.group.gather_with_gradients(embeddings.transpose(0, 1)).transpose(0, 1)  # V x N x d
        regularity = sigreg(everyone, directions(step, everyone.device))
        loss = (1 - self.sigreg_weight) * prediction + self.sigreg_weight * regularity
        return StepResult(loss, [prediction.detach(), regularity.detach()], F.normalize(embeddings[0].detach(), dim=1))

    @classmethod
    @override
    def chance(cls, options: Mapping[str, Any], batch_size: int) -> str:
        points, weights = _quadrature(torch.device("cpu"))
        # The variance of the real and imaginary part of the characteristic function of N normal numbers, times N.
        expected = float(((1 - torch.exp(-points.square())) * weights).sum())
        return f"prediction 0 and SIGReg far above {expected:.2f}, that of normal embeddings, are a collapse"


def distance_to_mean(embeddings: Tensor) -> Tensor:
    """The mean square difference of each view from the mean of all views of its image.

    Args:
        embeddings: float32 (V, n, d).
    """
    return (embeddings.mean(dim=0) - embeddings).square().mean()


def sigreg(embeddings: Tensor, along: Tensor) -> Tensor:
    """Sketched Isotropic Gaussian Regularization: the mean Epps-Pulley statistic over views and directions.

    The statistic is N times the squared distance of the empirical characteristic function of N numbers from that of a
    standard normal variable, exp(-t^2 / 2), integrated over t with that function as weight, from -3 to 3.

    Args:
        embeddings: float32 (V, N, d).
        along: directions of length 1, float32 (d, M).
    """
    points, weights = _quadrature(embeddings.device)
    angles = (embeddings @ along)[..., None] * points  # V x N x M x T
    real = (angles.cos().mean(dim=1) - torch.exp(-points.square() / 2)).square()
    distance = real + angles.sin().mean(dim=1).square()  # V x M x T
    return embeddings.shape[1] * (distance @ weights).mean()


def directions(step: Step, device: torch.device | str = "cpu") -> Tensor:
    """Random directions of a step, the same in all processes, after a resume and in a CUDA graph: float32 (d, M).

    A generator would draw other numbers in a graph. These are normal by Box and Muller, of uniform numbers that are the
    mixed bits of a count.
    """
    size = PROJECTION_SIZE * DIRECTIONS
    bits = mixed(torch.arange(2 * size, device=device) + 2 * size * step)
    uniform = (bits >> 40 & (1 << 24) - 1).float() / (1 << 24)
    radius, angle = (-2 * torch.log1p(-uniform[:size])).sqrt(), 2 * math.pi * uniform[size:]
    return F.normalize((radius * angle.cos()).view(PROJECTION_SIZE, DIRECTIONS), dim=0)


def mixed(counts: Tensor) -> Tensor:
    """Numbers of 64 random bits, one for each count (SplitMix64: Steele et al., OOPSLA 2014); int64 of any shape."""
    bits = counts * _GOLDEN
    for shift, factor in ((30, _MIX[0]), (27, _MIX[1]), (31, 1)):
        bits = (bits ^ (bits >> shift & (1 << 64 - shift) - 1)) * factor
    return bits


def _quadrature(device: torch.device) -> tuple[Tensor, Tensor]:
    """Points from 0 on, and their weights in the integral over both signs, by the trapezoidal rule: float32 (T,)."""
    points = torch.linspace(0, LAST_POINT, POINTS, device=device)
    weights = torch.full((POINTS,), 2 * LAST_POINT / (POINTS - 1), device=device)
    for end in (0, -1):
        weights[end] /= 2
    return points, weights * torch.exp(-points.square() / 2)
