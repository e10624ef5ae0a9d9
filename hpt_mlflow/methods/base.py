"""The interface of a self-supervised method: the loss of the views of a step, and what follows the update."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from hpt_mlflow.group import Group
from hpt_mlflow.models.learning import depths

EMBEDDING_SIZE = 128
# Optimiser steps done before; in a CUDA graph an int64 tensor without dimensions.
Step: TypeAlias = int | Tensor


class Views(Protocol):
    """The views of a step: augmented images, normalised, on the device, float32 (n, channels, size, size).

    Small views, for methods that ask for them, come after those of full size.
    """

    def __getitem__(self, number: int) -> Tensor:
        """One view of each image of this process; the order of images is the same in all views."""

    def shuffled(self, number: int) -> tuple[Tensor, Tensor]:
        """One view of the images of all processes, shuffled, of which this process gets its share.

        Returns:
            The views, float32 (n, channels, size, size), and which image of the whole batch each place of the shuffled
            batch holds, int64 (N,).
        """


class StepResult(NamedTuple):
    """What a method computes in a step.

    Attributes:
        loss: scalar, with gradients.
        metrics: the values named by `Method.metrics`, in their order; scalars without gradients.
        embeddings: L2-normalised embeddings of the images of this process, float32 (n, d), without gradients.
    """

    loss: Tensor
    metrics: Sequence[Tensor]
    embeddings: Tensor


class Method(nn.Module, ABC):
    """A method with its networks; a training stage trains one of these.

    What `state_dict` holds is kept in a training state, so all that lasts from step to step is a parameter or a buffer.

    Attributes:
        title: its name for people.
        views: number of views of each image in a step.
        local_views: number of small views of small parts of each image in a step (`augment.multicrop`), which
            `models.positions.call_at_size` takes through a network.
        passes: how often an image passes through the network in a step, a backward pass counted as two, and a small
            view by its area.
        metrics: names of what a step reports besides the loss and the standard deviation of the embeddings.
        capturable: whether each step is the same operations on tensors of the same shapes, and its number may be an
            int64 tensor: then a CUDA graph can hold it.
        steps: optimiser steps of the whole training; the training loop sets it before the first one.
    """

    title: ClassVar[str]
    views: ClassVar[int] = 2
    local_views: ClassVar[int] = 0
    passes: ClassVar[float]
    metrics: ClassVar[tuple[str, ...]] = ()
    capturable: ClassVar[bool] = False
    steps: int = 1

    def __init__(self, backbone: nn.Module, feature_size: int, options: Mapping[str, Any], group: Group) -> None:
        """Keep the group; a method adds its networks and its options.

        Args:
            backbone: float32 (N, channels, H, W) to (N, feature_size); its parameters that may not learn need no
                gradient.
            options: every option of the method (`methods.METHODS`), fitted to the dataset.
            group: the processes that train together.
        """
        super().__init__()
        self.group = group

    @property
    @abstractmethod
    def backbone(self) -> nn.Module:
        """The network that is registered."""

    @property
    def learner(self) -> nn.Module:
        """The backbone that gradients change; another one if what is registered is its moving average."""
        return self.backbone

    @property
    def backbones(self) -> Sequence[nn.Module]:
        """The backbone and its copies."""
        return (self.backbone,)

    @property
    @abstractmethod
    def networks(self) -> Sequence[nn.Module]:
        """The networks that torch.compile may compile."""

    @abstractmethod
    def forward(self, views: Views, step: Step) -> StepResult:
        """A step up to its loss.

        Args:
            step: optimiser steps done before.
        """

    def after_step(self, step: Step) -> None:
        """Whatever follows the update of the weights."""

    def make_optimizer(
        self,
        learning_rate: float,
        weight_decay: float,
        name: str = "sgd",
        head_rate: float = 1.0,
        layer_decay: float = 1.0,
    ) -> torch.optim.Optimizer:
        """An optimiser of all parameters that may learn.

        Args:
            name: `sgd`, with momentum 0.9 (HPT, section 4.1), or `adamw`.
            head_rate: learning rate of what is not the backbone, over that of the backbone.
            layer_decay: learning rate of each block of the backbone, over that of the next one.

        Returns:
            With `factor` in each group of parameters: its learning rate over that of the training.
        """
        decays = {name: layer_decay**depth for name, depth in depths(self.learner).items()} if layer_decay < 1 else {}
        factors = {id(p): decays.get(name, 1.0) for name, p in self.learner.named_parameters()}
        learning = [parameter for parameter in self.parameters() if parameter.requires_grad]
        groups = [
            {"params": [p for p in learning if factors.get(id(p)) == factor], "factor": factor}
            for factor in sorted(set(factors.values()), reverse=True)
        ]
        groups.append({"params": [p for p in learning if id(p) not in factors], "factor": head_rate})
        fused = learning[0].device.type in ("cpu", "cuda")
        if name == "adamw":
            return torch.optim.AdamW(groups, lr=learning_rate, weight_decay=weight_decay, fused=fused)
        sgd = torch.optim.SGD(groups, lr=learning_rate, momentum=0.9, weight_decay=weight_decay, fused=fused)
        for parameter in learning:
            # The fused optimiser would start from uninitialised memory: if float16 overflows in the first step, that
            # step is skipped, and what the memory holds becomes the momentum.
            sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return sgd

    def recent_embeddings(self, last: Tensor, images: int) -> Tensor:
        """Embeddings whose effective rank is reported, float32 (M, d): those of the last step, if no more are kept.

        Args:
            last: embeddings of the last step, of all processes.
            images: number of images in all steps so far.
        """
        return last

    @classmethod
    def fit_options(
        cls, options: Mapping[str, Any], given: Collection[str], batch_size: int, images: int, processes: int
    ) -> dict[str, Any]:
        """The options cut to what the dataset allows.

        Args:
            given: names of those that the user has set; refuse these rather than change them.
            batch_size: images per step, of all processes together.
            images: number of images to learn from.

        Raises:
            HptError: an option does not fit.
        """
        return dict(options)

    @classmethod
    @abstractmethod
    def chance(cls, options: Mapping[str, Any], batch_size: int) -> str:
        """The values that embeddings without information would give, for a run's description."""


@torch.no_grad()
def follow(follower: nn.Module, leader: nn.Module, momentum: float | Tensor) -> None:
    """Move a copy of a network towards it, where it learns; the copy keeps the share `momentum` of its weights."""
    pairs = zip(leader.parameters(), follower.parameters(), strict=True)
    learning = [(leading, following) for leading, following in pairs if leading.requires_grad]
    leaders, followers = [list(side) for side in zip(*learning, strict=True)]
    if isinstance(momentum, Tensor):
        changes = torch._foreach_sub(leaders, followers)
        torch._foreach_mul_(changes, 1 - momentum)
        torch._foreach_add_(followers, changes)
    else:
        torch._foreach_lerp_(followers, leaders, 1 - momentum)


def rising_to_1(momentum: float, step: Step, steps: int) -> float | Tensor:
    """A momentum at a step, counted from 0: rises to 1 along a cosine (BYOL, section 3.3; DINO, section 3.1)."""
    turn = math.pi * step / steps
    cosine = turn.cos() if isinstance(turn, Tensor) else math.cos(turn)
    return 1 - (1 - momentum) * (cosine + 1) / 2


def projection_head(feature_size: int) -> nn.Sequential:
    """Two layers with ReLU to 128 dimensions (MoCo-v2; SimCLR, section 2.1), initialised as in HPT's reference code."""
    head = nn.Sequential(nn.Linear(feature_size, feature_size), nn.ReLU(), nn.Linear(feature_size, EMBEDDING_SIZE))
    for layer in head:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    return head
