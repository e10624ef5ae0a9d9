"""How well a linear classifier predicts by how much an image was turned (Reed et al., CVPR 2021)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from hpt_mlflow.evaluation.objectives.base import Examples
from hpt_mlflow.evaluation.objectives.probe import ProbeJudge

# By 0, 90, 180 and 270 degrees, counterclockwise.
TURNS = 4


class RotationJudge(ProbeJudge):
    """The share of turned validation images whose turn a linear classifier predicts; 0.25 is chance."""

    examples_per_image = TURNS
    chance = 1 / TURNS

    def examples(self, backbone: nn.Module, part: np.ndarray) -> Examples:
        """See `Judge.examples`."""
        # All turns of an image pass at once.
        reader = replace(self.reader, batch_size=max(1, self.reader.batch_size // TURNS))
        features = reader.features(_Turned(backbone), part)  # N x 4F
        turns = np.tile(np.arange(TURNS), len(part))
        return Examples(features.reshape(TURNS * len(part), -1), turns, np.repeat(part, TURNS))


class _Turned(nn.Module):
    """A backbone applied to each image in its four turns: float32 (N, channels, S, S) to (N, 4F), turn by turn."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, batch: Tensor) -> Tensor:
        turned = torch.cat([torch.rot90(batch, turn, (2, 3)) for turn in range(TURNS)])  # 4N x channels x S x S
        features: Tensor = self.backbone(turned).flatten(1)  # 4N x F
        return features.unflatten(0, (TURNS, -1)).transpose(0, 1).flatten(1)
