"""SimCLR (Chen et al., ICML 2020): two views of an image attract each other, and repel all other views of the batch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from hpt_mlflow.group import ALONE, Group
from hpt_mlflow.methods.base import Method, Step, StepResult, Views, projection_head


class SimCLR(Method):
    """One encoder: a backbone and a projection head of two layers to 128 dimensions (SimCLR, section 2.1).

    Batch statistics are those of both views of a process's images; losses reach across all processes.

    Options:
        temperature: divides the similarities.
    """

    title = "SimCLR"
    # Forward and backward of both views.
    passes = 6
    metrics = ("top1",)
    capturable = True

    def __init__(
        self, backbone: nn.Module, feature_size: int, options: Mapping[str, Any], group: Group = ALONE
    ) -> None:
        super().__init__(backbone, feature_size, options, group)
        self.temperature: float = options["temperature"]
        self.encoder = nn.Sequential(backbone, nn.Flatten(), projection_head(feature_size))

    @property
    @override
    def backbone(self) -> nn.Module:
        return self.encoder[0]

    @property
    @override
    def networks(self) -> Sequence[nn.Module]:
        return (self.encoder,)

    @override
    def forward(self, views: Views, step: Step) -> StepResult:
        """Algorithm 1 of SimCLR up to its loss."""
        images = torch.cat([views[0], views[1]])  # 2n x channels x H x W
        embeddings = F.normalize(self.encoder(images).float(), dim=1)  # 2n x 128
        pairs = embeddings.view(2, -1, embeddings.shape[1]).transpose(0, 1)  # n x 2 x 128
        everyone = self.group.gather_with_gradients(pairs)  # N x 2 x 128
        loss, share = nt_xent(everyone, self.group.part(len(everyone)), self.temperature)
        return StepResult(loss, [share], pairs[:, 0].detach())

    @classmethod
    @override
    def chance(cls, options: Mapping[str, Any], batch_size: int) -> str:
        others = 2 * batch_size - 1
        return f"loss ln(2 x batch - 1) = {math.log(others):.2f}, top-1 = {1 / others:.2%}"


def nt_xent(pairs: Tensor, rows: slice, temperature: float) -> tuple[Tensor, Tensor]:
    """NT-Xent (SimCLR, equation 1) of some images of a batch, each view against all others of the whole batch.

    Args:
        pairs: L2-normalised embeddings of both views of all images, float32 (N, 2, d).
        rows: the images whose losses count.

    Returns:
        The mean loss, and the share of views that are most similar to the other view of their image.
    """
    count = len(pairs)
    embeddings = pairs.transpose(0, 1).flatten(0, 1)  # 2N x d, first views before second views
    own = torch.arange(count, device=pairs.device)[rows]
    anchors = torch.cat([own, own + count])
    positives = torch.cat([own + count, own])
    similarities = embeddings[anchors] @ embeddings.T / temperature  # 2n x 2N
    # A view is not compared with itself.
    similarities = similarities.scatter(1, anchors[:, None], -torch.inf)
    top1 = (similarities.detach().argmax(dim=1) == positives).float().mean()
    return F.cross_entropy(similarities, positives), top1
