"""BYOL (Grill et al., NeurIPS 2020, arXiv 2006.07733): predict what a slower copy makes of the other view."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from hpt_mlflow.group import ALONE, Group
from hpt_mlflow.methods.base import Method, Step, StepResult, Views, follow, rising_to_1

HIDDEN_SIZE = 4096
PROJECTION_SIZE = 256


class BYOL(Method):
    """Online network and target network (BYOL, section 3.1).

    An encoder is a backbone and a projector. The online network is an encoder and a predictor; it predicts from one
    view what the target network, an encoder alone, makes of the other. The target network starts as a copy of the
    online encoder, and is its moving average. What the online encoder may not learn (`models.learning`) is equal in
    both and stays so.

    Projector and predictor have batch normalisation (section 3.3). Its statistics are those of all processes together,
    as in the reference code (`cross_replica_axis`); those of the backbone are of each process.

    Options:
        target_momentum: share of its old weights that the target network keeps at the first step (BYOL, equation 1).
    """

    title = "BYOL"
    # Forward and backward of both views by the online network, and forward of both by the target network.
    passes = 8
    capturable = True

    def __init__(
        self, backbone: nn.Module, feature_size: int, options: Mapping[str, Any], group: Group = ALONE
    ) -> None:
        super().__init__(backbone, feature_size, options, group)
        self.target_momentum: float = options["target_momentum"]
        self.online_encoder = nn.Sequential(backbone, nn.Flatten(), perceptron(feature_size, group))
        self.predictor = perceptron(PROJECTION_SIZE, group)
        self.target_encoder = copy.deepcopy(self.online_encoder).requires_grad_(False)

    @property
    @override
    def backbone(self) -> nn.Module:
        return self.online_encoder[0]

    @property
    @override
    def backbones(self) -> Sequence[nn.Module]:
        return self.online_encoder[0], self.target_encoder[0]

    @property
    @override
    def networks(self) -> Sequence[nn.Module]:
        return self.online_encoder, self.predictor, self.target_encoder

    @override
    def forward(self, views: Views, step: Step) -> StepResult:
        """Algorithm 1 of BYOL up to its loss: each view predicts the other; each has batch statistics of its own."""
        first, second = (self.online_encoder(views[number]) for number in (0, 1))  # n x 256
        first_target, second_target = (self.encode_target(views[number]) for number in (0, 1))  # n x 256
        # Equation 2 for both orders of the views.
        losses = distance(self.predictor(first), second_target) + distance(self.predictor(second), first_target)  # n
        return StepResult(losses.mean(), [], F.normalize(first.detach().float(), dim=1))

    @torch.no_grad()
    def encode_target(self, view: Tensor) -> Tensor:
        """Projections that the online network is to predict, (n, 256); no gradient goes through them.

        Args:
            view: normalised images, float32 (n, channels, H, W).
        """
        targets: Tensor = self.target_encoder(view)
        return targets

    @override
    def after_step(self, step: Step) -> None:
        """The last line of algorithm 1's loop."""
        self.update_target_encoder(self.momentum_at(step))

    def momentum_at(self, step: Step) -> float | Tensor:
        """The target network's momentum at a step, counted from 0: rises to 1 along a cosine (BYOL, section 3.3)."""
        return rising_to_1(self.target_momentum, step, self.steps)

    def update_target_encoder(self, momentum: float | Tensor) -> None:
        """Move the target network towards the online encoder (BYOL, equation 1)."""
        follow(self.target_encoder, self.online_encoder, momentum)

    @classmethod
    @override
    def chance(cls, options: Mapping[str, Any], batch_size: int) -> str:
        return "loss 4 (directions without relation); 0 if all images have one embedding, which is a collapse"


class GroupBatchNorm(nn.BatchNorm1d):
    """Batch normalisation by the statistics of all processes together, on any device."""

    def __init__(self, features: int, group: Group) -> None:
        super().__init__(features)
        self.group = group

    @override
    def forward(self, input: Tensor) -> Tensor:
        everyone = self.group.gather_with_gradients(input.float())  # N x features
        return super().forward(everyone)[self.group.part(len(everyone))]  # n x features


def perceptron(input_size: int, group: Group) -> nn.Sequential:
    """The projector, and the predictor: two layers to 256 dimensions (BYOL, section 3.3, and reference code)."""
    return nn.Sequential(
        nn.Linear(input_size, HIDDEN_SIZE),
        GroupBatchNorm(HIDDEN_SIZE, group),
        nn.ReLU(),
        nn.Linear(HIDDEN_SIZE, PROJECTION_SIZE, bias=False),
    )


def distance(predictions: Tensor, targets: Tensor) -> Tensor:
    """Squared distances of normalised predictions to normalised targets, from 0 to 4 (BYOL, equation 2).

    Args:
        predictions, targets: of the same images, (n, d).

    Returns:
        float32 (n,).
    """
    return 2 - 2 * F.cosine_similarity(predictions.float(), targets.float(), dim=1)
