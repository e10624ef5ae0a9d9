"""DINO (Caron et al., ICCV 2021, arXiv 2104.14294): predict how a slower copy sorts larger views of an image."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from hpt_mlflow.augment.multicrop import LOCAL_SHARE
from hpt_mlflow.group import ALONE, Group
from hpt_mlflow.methods.base import Method, Step, StepResult, Views, follow, rising_to_1
from hpt_mlflow.methods.byol import GroupBatchNorm
from hpt_mlflow.models.backbone import batch_norms
from hpt_mlflow.models.positions import call_at_size

# DINO, section 3.2 and its reference code.
HIDDEN_SIZE, EMBEDDING_SIZE = 2048, 256
STUDENT_TEMPERATURE, FIRST_TEACHER_TEMPERATURE = 0.1, 0.04
CENTRE_MOMENTUM = 0.9
# Shares of the training. In the reference code, the first 30 epochs of 300, and the first of 100.
TEMPERATURE_WARM_UP, FROZEN_PROTOTYPES = 0.1, 0.01


class DINO(Method):
    """Student and teacher (DINO, section 3.1).

    Each is a backbone, a projector of three layers to 256 dimensions, which are L2-normalised, and prototypes of length
    1 in as many dimensions. Where the backbone has batch normalisation, the projector has too (section 3.1, network
    architecture), here by the statistics of the views of each size. Similarities to the prototypes are the logits of a
    distribution. From each view, the student predicts the distributions that the teacher has for the views of full
    size, except for the same view.

    The teacher starts as a copy of the student, and is its moving average. Its backbone is what is registered, as it is
    better than the student's (section 5.2). What the student's backbone may not learn (`models.learning`) is equal in
    both and stays so.

    Against collapse, the teacher's logits are centred, by a moving average over the batches of all processes, and
    sharpened, by a low temperature (section 3.1).

    Options:
        teacher_momentum: share of its old weights that the teacher keeps at the first step.
        teacher_temperature: divides the teacher's logits; rises to this value during the first tenth of the training.
        prototypes: their number (K).
    """

    title = "DINO"
    views = 2
    local_views = 8
    # Forward and backward of all views by the student, and forward of those of full size by the teacher.
    passes = 3 * (views + local_views * LOCAL_SHARE**2) + views
    metrics = ("teacher_entropy", "kl")
    capturable = True
    centre: Tensor

    def __init__(
        self, backbone: nn.Module, feature_size: int, options: Mapping[str, Any], group: Group = ALONE
    ) -> None:
        super().__init__(backbone, feature_size, options, group)
        self.teacher_momentum: float = options["teacher_momentum"]
        self.teacher_temperature: float = options["teacher_temperature"]
        self.student_encoder = nn.Sequential(
            backbone, nn.Flatten(), projector(feature_size, group if batch_norms(backbone) else None)
        )
        self.student_prototypes = Prototypes(options["prototypes"])
        self.teacher_encoder = copy.deepcopy(self.student_encoder).requires_grad_(False)
        self.teacher_prototypes = copy.deepcopy(self.student_prototypes).requires_grad_(False)
        self.register_buffer("centre", torch.zeros(options["prototypes"]))  # K
        self._batch_centre = torch.empty(0)

    @property
    @override
    def backbone(self) -> nn.Module:
        return self.teacher_encoder[0]

    @property
    @override
    def learner(self) -> nn.Module:
        return self.student_encoder[0]

    @property
    @override
    def backbones(self) -> Sequence[nn.Module]:
        return self.student_encoder[0], self.teacher_encoder[0]

    @property
    @override
    def networks(self) -> Sequence[nn.Module]:
        return self.student_encoder, self.teacher_encoder

    @override
    def forward(self, views: Views, step: Step) -> StepResult:
        """Algorithm 1 of DINO up to its loss; the views of each size are a batch of their own."""
        whole = torch.cat([views[number] for number in range(self.views)])  # 2n x channels x H x W
        local = torch.cat([views[self.views + number] for number in range(self.local_views)])  # 8n x channels x h x w
        targets = self.teacher_distributions(whole, step)  # 2 x n x K
        encoded = [self.student_encoder(whole), call_at_size(self.student_encoder, local, whole.shape[-1])]
        embeddings = F.normalize(torch.cat(encoded).float(), dim=1)  # 10n x 256
        frozen = step < FROZEN_PROTOTYPES * self.steps
        logits = self.student_prototypes(embeddings, frozen).float().unflatten(0, (-1, targets.shape[1]))  # 10 x n x K
        loss = cross_entropy(targets, F.log_softmax(logits / STUDENT_TEMPERATURE, dim=2))
        entropy = torch.special.entr(targets).sum(dim=2).mean()
        # Each distribution of the teacher is in equally many pairs.
        return StepResult(loss, [entropy, loss.detach() - entropy], embeddings[: targets.shape[1]].detach())

    @torch.no_grad()
    def teacher_distributions(self, whole: Tensor, step: Step) -> Tensor:
        """What the student is to predict, float32 (2, n, K); keeps the mean of the logits for the next centre.

        Args:
            whole: the views of full size one after the other, float32 (2n, channels, H, W).
        """
        embeddings = F.normalize(self.teacher_encoder(whole).float(), dim=1)  # 2n x 256
        logits = self.teacher_prototypes(embeddings).float()  # 2n x K
        self._batch_centre = self.group.mean(logits.mean(dim=0))
        sharpened = (logits - self.centre) / self.teacher_temperature_at(step)
        return F.softmax(sharpened, dim=1).unflatten(0, (self.views, -1))

    def teacher_temperature_at(self, step: Step) -> float | Tensor:
        """The teacher's temperature at a step, counted from 0: rises linearly from 0.04, unless it is to be lower."""
        first = min(FIRST_TEACHER_TEMPERATURE, self.teacher_temperature)
        share = step / (TEMPERATURE_WARM_UP * self.steps)
        share = share.clamp(max=1) if isinstance(share, Tensor) else min(1.0, share)
        return first + (self.teacher_temperature - first) * share

    @override
    def after_step(self, step: Step) -> None:
        """The last lines of algorithm 1: the moving averages that are the teacher and the centre (equation 4)."""
        momentum = rising_to_1(self.teacher_momentum, step, self.steps)
        follow(self.teacher_encoder, self.student_encoder, momentum)
        follow(self.teacher_prototypes, self.student_prototypes, momentum)
        self.centre.lerp_(self._batch_centre, 1 - CENTRE_MOMENTUM)

    @classmethod
    @override
    def fit_options(
        cls, options: Mapping[str, Any], given: Collection[str], batch_size: int, images: int, processes: int
    ) -> dict[str, Any]:
        """Leave out prototypes for which there are no images."""
        prototypes = options["prototypes"]
        return {**options, "prototypes": prototypes if "prototypes" in given else min(prototypes, images)}

    @classmethod
    @override
    def chance(cls, options: Mapping[str, Any], batch_size: int) -> str:
        uniform = f"{math.log(options['prototypes']):.2f}"
        return (
            f"loss about ln(prototypes) = {uniform}. A kl that stays near 0 is a collapse: of all images onto one "
            f"prototype, with teacher_entropy 0, or equally onto all, with {uniform}"
        )


class Prototypes(nn.Module):
    """Cosine similarities of embeddings to prototypes.

    That is the last layer of the reference code: linear, without bias, and with weights normalised to the length 1.
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self.weight = nn.Linear(EMBEDDING_SIZE, count, bias=False).weight  # K x 256

    @override
    def forward(self, embeddings: Tensor, frozen: bool | Tensor = False) -> Tensor:
        """From L2-normalised embeddings (n, 256) to (n, K).

        Args:
            frozen: whether the prototypes get a gradient of 0. None at all would keep other processes waiting for it.
                Weight decay then changes only the length of the weights, and so nothing.
        """
        weight = self.weight
        if isinstance(frozen, Tensor) or frozen:
            weight = weight.detach().lerp(weight, (~frozen).float() if isinstance(frozen, Tensor) else 0.0)
        return F.linear(embeddings, F.normalize(weight, dim=1))


def projector(feature_size: int, normalising: Group | None = None) -> nn.Sequential:
    """Three layers with GELU to 256 dimensions, initialised as in the reference code.

    Args:
        normalising: with batch normalisation by the statistics of these processes; None for without.
    """
    norms = [[GroupBatchNorm(HIDDEN_SIZE, normalising)] if normalising else [] for _ in range(2)]
    head = nn.Sequential(
        nn.Linear(feature_size, HIDDEN_SIZE),
        *norms[0],
        nn.GELU(),
        nn.Linear(HIDDEN_SIZE, HIDDEN_SIZE),
        *norms[1],
        nn.GELU(),
        nn.Linear(HIDDEN_SIZE, EMBEDDING_SIZE),
    )
    for layer in head:
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
    return head


def cross_entropy(targets: Tensor, predictions: Tensor) -> Tensor:
    """The mean cross-entropy over images and pairs of a target and another view (DINO, equation 3).

    Args:
        targets: distributions for the first views, float32 (T, n, K).
        predictions: logarithms of distributions for all views, float32 (V, n, K).
    """
    pairs = [(i, j) for i in range(len(targets)) for j in range(len(predictions)) if i != j]
    return -torch.stack([(targets[i] * predictions[j]).sum(dim=1).mean() for i, j in pairs]).mean()
