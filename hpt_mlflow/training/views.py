"""The views of one step, made from crops when the method asks for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from hpt_mlflow.augment.draws import FinishDraws
from hpt_mlflow.augment.in_batches import send
from hpt_mlflow.group import ALONE, Group


class StepViews:
    """`methods.base.Views` of the crops of a step; the same numbers whatever the number of processes."""

    def __init__(
        self,
        crops: Sequence[Tensor],
        draws: Sequence[FinishDraws],
        rng: np.random.Generator,
        finish: Callable[[Tensor, FinishDraws], Tensor],
        group: Group,
    ) -> None:
        """
        Args:
            crops: for each view, those of the images of this process, on the device, uint8 or uint16
                (n, channels, size, size).
            draws: for each view, those of the images of all processes.
            rng: draws the orders of `shuffled`.
            finish: makes views of crops.
        """
        self._crops = crops
        self._draws = draws
        self._rng = rng
        self._finish = finish
        self._group = group
        self._count = len(crops[0]) * group.size
        self._own = group.part(self._count)
        self._made: dict[int, Tensor] = {}

    def __getitem__(self, number: int) -> Tensor:
        """One view of each image of this process, float32 (n, channels, size, size)."""
        if number not in self._made:
            self._made[number] = self._view(self._crops[number], self._draws[number].part(self._own))
        return self._made[number]

    def shuffled(self, number: int) -> tuple[Tensor, Tensor]:
        """This process's share of one view of all images, in an order drawn anew, and that order."""
        order = self._rng.permutation(self._count)
        crops = self._crops[number]
        places = send(order, crops.device)
        shuffled = pick(crops, places[self._own], self._group)
        return self._view(shuffled, self._draws[number].part(order[self._own])), places

    @torch.no_grad()
    def _view(self, crops: Tensor, draws: FinishDraws) -> Tensor:
        # Views are float32 whatever the arithmetic of the networks.
        with torch.autocast(crops.device.type, enabled=False):
            return self._finish(crops, draws)


def pick(crops: Tensor, places: Tensor, group: Group = ALONE) -> Tensor:
    """Some of the crops of all processes, in the given order.

    Args:
        crops: those of this process, uint8 or uint16 (n, channels, size, size).
    """
    # Few operations, and no exchange between processes, know numbers of 16 bits.
    whole = crops if crops.dtype == torch.uint8 else crops.contiguous().view(torch.uint8)
    return group.gather(whole)[places].view(crops.dtype)
