"""MoCo-v2 (He et al., CVPR 2020; Chen et al., arXiv 2003.04297): the method in one file."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from hpt_mlflow.errors import HptError
from hpt_mlflow.group import ALONE, Group
from hpt_mlflow.methods.base import EMBEDDING_SIZE, Method, Step, StepResult, Views, follow, projection_head
from hpt_mlflow.models.batch_norm_in_parts import normalise_in_parts


class MoCo(Method):
    """Query encoder, key encoder and queue.

    An encoder is a backbone and a projection head of two layers to 128 dimensions (MoCo-v2). The key encoder starts as
    a copy of the query encoder and follows it by momentum. What the query encoder may not learn (`models.learning`) is
    equal in both and stays so.

    Options:
        key_momentum: share of its old weights that the key encoder keeps at a step (MoCo, equation 2).
        temperature: divides the similarities.
        queue_size: number of keys kept as negatives; a multiple of the batch size.
        bn_splits: number of parts of the whole key batch with their own batch statistics.
    """

    title = "MoCo-v2"
    # Forward and backward of the query, and forward of the key.
    passes = 4
    metrics = ("top1",)
    capturable = True
    queue: Tensor

    def __init__(
        self, backbone: nn.Module, feature_size: int, options: Mapping[str, Any], group: Group = ALONE
    ) -> None:
        super().__init__(backbone, feature_size, options, group)
        self.key_momentum: float = options["key_momentum"]
        self.temperature: float = options["temperature"]
        self.query_encoder = nn.Sequential(backbone, nn.Flatten(), projection_head(feature_size))
        self.key_encoder = copy.deepcopy(self.query_encoder).requires_grad_(False)
        normalise_in_parts(self.key_encoder, options["bn_splits"] // group.size)
        queue = torch.randn(options["queue_size"], EMBEDDING_SIZE)
        self.register_buffer("queue", F.normalize(queue, dim=1))  # K x 128
        self._keys = torch.empty(0, EMBEDDING_SIZE)

    @property
    @override
    def backbone(self) -> nn.Module:
        return self.query_encoder[0]

    @property
    @override
    def backbones(self) -> Sequence[nn.Module]:
        return self.query_encoder[0], self.key_encoder[0]

    @property
    @override
    def networks(self) -> Sequence[nn.Module]:
        return self.query_encoder, self.key_encoder

    @override
    def forward(self, views: Views, step: Step) -> StepResult:
        """Algorithm 1 of MoCo up to its loss: match one view of each image to its other view among the queue."""
        self.update_key_encoder()
        key_views, order = views.shuffled(1)
        shuffled = self.group.gather(self.encode_keys(key_views))  # N x 128
        self._keys = torch.empty_like(shuffled).index_copy_(0, order, shuffled)
        queries = F.normalize(self.query_encoder(views[0]).float(), dim=1)  # n x 128
        logits = self.logits(queries, self._keys[self.group.part(len(self._keys))])
        return StepResult(info_nce(logits), [top1(logits)], queries.detach())

    def update_key_encoder(self) -> None:
        """Move the key encoder towards the query encoder (MoCo, equation 2)."""
        follow(self.key_encoder, self.query_encoder, self.key_momentum)

    @torch.no_grad()
    def encode_keys(self, key_views: Tensor) -> Tensor:
        """L2-normalised embeddings of the keys, float32 (n, 128), each part normalised by its own batch statistics.

        A query and its key in one batch would share batch statistics, and the network could find the pair by them
        instead of by content. MoCo shuffles the keys over devices (ShuffleBN, section 3.3); parts of a key batch that
        was shuffled before do the same.

        Args:
            key_views: normalised images in a random order, float32 (n, channels, H, W).
        """
        return F.normalize(self.key_encoder(key_views).float(), dim=1)

    def logits(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Similarities over temperature, float32 (n, 1 + queue size); that to the query's own key comes first.

        Args:
            queries, keys: of the same images, float32 (n, 128).
        """
        positive = (queries * keys).sum(dim=1, keepdim=True)  # n x 1
        negative = queries @ self.queue.T  # n x K
        return torch.cat([positive, negative], dim=1) / self.temperature

    @override
    def after_step(self, step: Step) -> None:
        """Enqueue the keys, after the backward pass, which needs the old queue."""
        self.enqueue(self._keys, step)

    @torch.no_grad()
    def enqueue(self, keys: Tensor, step: Step) -> None:
        """Put the N keys of a step, counted from 0, in place of the oldest; the queue's size is a multiple of N."""
        places = torch.arange(len(keys), device=keys.device) + step * len(keys)
        self.queue.index_copy_(0, places % len(self.queue), keys)

    @override
    def recent_embeddings(self, last: Tensor, images: int) -> Tensor:
        """The keys in the queue, without the random ones that it starts with."""
        return self.queue[:images]

    @classmethod
    @override
    def fit_options(
        cls, options: Mapping[str, Any], given: Collection[str], batch_size: int, images: int, processes: int
    ) -> dict[str, Any]:
        """Cut the queue to what one epoch fills, and the parts of the key batch to two images each."""
        bn_splits = options["bn_splits"]
        if "bn_splits" in given and 2 * bn_splits > batch_size:
            problem = f"{bn_splits} parts of a batch of {batch_size} have fewer than 2 images each"
            raise HptError(problem, f"lower it to {batch_size // 2} or less", setting="bn_splits")
        if "bn_splits" in given and bn_splits % processes:
            problem = f"{bn_splits} parts cannot be shared equally by {processes} processes"
            raise HptError(problem, f"use a multiple of {processes}", setting="bn_splits")
        # Each process has at least one part: BatchNorm does not look beyond it.
        splits_each = max(1, min(bn_splits, batch_size // 2) // processes)
        fillable = min(options["queue_size"], images) // batch_size * batch_size
        return {**options, "bn_splits": splits_each * processes, "queue_size": max(fillable, batch_size)}

    @classmethod
    @override
    def chance(cls, options: Mapping[str, Any], batch_size: int) -> str:
        candidates = 1 + options["queue_size"]
        return f"loss ln(1 + queue) = {math.log(candidates):.2f}, top-1 = {1 / candidates:.2%}"


def info_nce(logits: Tensor) -> Tensor:
    """InfoNCE (MoCo, equation 1), mean over the batch; chance level is ln(1 + queue size).

    Args:
        logits: the positive comes first, float32 (n, 1 + negatives).
    """
    positive = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    return F.cross_entropy(logits, positive)


def top1(logits: Tensor) -> Tensor:
    """Share of rows whose positive, the first, is ranked first; chance level is 1 / (1 + negatives)."""
    return (logits.detach().argmax(dim=1) == 0).float().mean()
