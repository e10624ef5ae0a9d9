"""MoCo-v2 (He et al., CVPR 2020; Chen et al., arXiv 2003.04297): the method in one file."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpt_mlflow.models.backbone import batch_norms

EMBEDDING_SIZE = 128


class MoCoOutput(NamedTuple):
    """What one step computes.

    Attributes:
        logits: similarities over temperature, float32 (n, 1 + queue size); the positive key stands first.
        queries: L2-normalised embeddings of the queries, float32 (n, 128).
    """

    logits: Tensor
    queries: Tensor

    @property
    def loss(self) -> Tensor:
        """InfoNCE (MoCo, equation 1), mean over the batch. Chance level is ln(1 + queue size)."""
        positive = torch.zeros(len(self.logits), dtype=torch.long, device=self.logits.device)
        return F.cross_entropy(self.logits, positive)

    @property
    def top1(self) -> Tensor:
        """Share of queries whose positive key is ranked first. Chance level is 1 / (1 + queue size)."""
        return (self.logits.argmax(dim=1) == 0).float().mean()


class MoCo(nn.Module):
    """Query encoder, key encoder and queue.

    An encoder is a backbone and a projection head of two layers to 128 dimensions (MoCo-v2). The key encoder starts as
    a copy of the query encoder and follows it by momentum. What the query encoder may not learn (see `freeze`) is equal
    in both and stays so.
    """

    queue: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        feature_size: int,
        queue_size: int,
        key_momentum: float = 0.999,
        temperature: float = 0.2,
        bn_splits: int = 1,
    ) -> None:
        """
        Args:
            backbone: float32 (N, 3, H, W) to (N, feature_size).
            queue_size: number of keys kept as negatives; a multiple of the batch size.
            key_momentum: share of its old weights that the key encoder keeps at a step (MoCo, equation 2).
            temperature: divides the similarities.
            bn_splits: number of parts that have batch statistics of their own, of the keys that `encode_keys` is given.
        """
        super().__init__()
        self.key_momentum = key_momentum
        self.temperature = temperature
        self.bn_splits = bn_splits
        self.query_encoder = nn.Sequential(backbone, nn.Flatten(), projection_head(feature_size))
        self.key_encoder = copy.deepcopy(self.query_encoder).requires_grad_(False)
        self.register_buffer("queue", F.normalize(torch.randn(queue_size, EMBEDDING_SIZE), dim=1))  # K x 128

    @property
    def backbone(self) -> nn.Module:
        """The query encoder without its projection head: what is kept."""
        return self.query_encoder[0]

    def forward(self, query_views: Tensor, keys: Tensor) -> MoCoOutput:
        """Embed one view of each image and compare it with the key of the other view and with the queue.

        Args:
            query_views: normalised images, float32 (n, 3, H, W).
            keys: of the same images, float32 (n, 128), from `encode_keys`.
        """
        queries = F.normalize(self.query_encoder(query_views).float(), dim=1)  # n x 128
        positive = (queries * keys).sum(dim=1, keepdim=True)  # n x 1
        negative = queries @ self.queue.T  # n x K
        logits = torch.cat([positive, negative], dim=1) / self.temperature  # n x (1 + K)
        return MoCoOutput(logits, queries.detach())

    @torch.no_grad()
    def encode_keys(self, key_views: Tensor) -> Tensor:
        """L2-normalised embeddings of the keys, float32 (n, 128), each part normalised by its own batch statistics.

        A query and its key in one batch would share batch statistics, and the network could find the pair by them
        instead of by content. MoCo shuffles the keys over devices (ShuffleBN, section 3.3); parts of a key batch that
        was shuffled before do the same.

        Args:
            key_views: normalised images in a random order, float32 (n, 3, H, W).
        """
        # Of sizes that differ by one at most: BatchNorm takes two images or more.
        keys = torch.cat([self.key_encoder(part) for part in key_views.tensor_split(self.bn_splits)])
        return F.normalize(keys.float(), dim=1)

    @torch.no_grad()
    def update_key_encoder(self) -> None:
        """Move the key encoder towards the query encoder (MoCo, equation 2); call it before the forward pass."""
        pairs = zip(self.query_encoder.parameters(), self.key_encoder.parameters(), strict=True)
        learning = [(query, key) for query, key in pairs if query.requires_grad]
        queries, keys = [list(side) for side in zip(*learning, strict=True)]
        torch._foreach_lerp_(keys, queries, 1 - self.key_momentum)

    @torch.no_grad()
    def enqueue(self, keys: Tensor, step: int) -> None:
        """Put the N keys of a step, counted from 0, in place of the oldest; call it after the backward pass.

        The queue's size is a multiple of N.
        """
        start = step * len(keys) % len(self.queue)
        self.queue[start : start + len(keys)] = keys


def projection_head(feature_size: int) -> nn.Sequential:
    """Two layers with ReLU to 128 dimensions (MoCo-v2); Kaiming initialisation, as in the paper's reference code."""
    head = nn.Sequential(nn.Linear(feature_size, feature_size), nn.ReLU(), nn.Linear(feature_size, EMBEDDING_SIZE))
    for layer in head:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    return head


def freeze(backbone: nn.Module, update: str) -> None:
    """Let only those parameters of a backbone learn that `update` allows.

    `all`: every one (HPT). `bn`: BatchNorm's affine parameters (HPT-BN). `bn-stats`: none (the paper's Base). Running
    statistics are buffers and are refreshed by any forward pass in training mode.
    """
    backbone.requires_grad_(update == "all")
    if update == "bn":
        for layer in batch_norms(backbone):
            layer.requires_grad_(True)
