"""BatchNorm over parts of a batch, in a network that sees the batch as a whole."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from hpt_mlflow.models.backbone import batch_norms


def normalise_in_parts(network: nn.Module, parts: int) -> None:
    """Let every BatchNorm layer of a network normalise parts of its batch, each by its own statistics, in training.

    All other layers take the batch as a whole: the numbers are those of calling the network with one part after the
    other, running statistics included, in fewer and larger operations. Names of parameters stay.

    Args:
        parts: their number; sizes differ by one at most.
    """
    for layer in batch_norms(network):
        kind: Any = type(layer)
        layer.__class__ = _in_parts(kind)
        vars(layer)["batch_parts"] = parts


@lru_cache
def _in_parts(kind: Any) -> Any:
    """The same kind of layer, which takes `batch_parts` parts of its batch one after the other in training."""

    def forward(self: Any, batch: Tensor) -> Any:
        if not self.training or self.batch_parts == 1:
            return kind.forward(self, batch)
        return torch.cat([kind.forward(self, part) for part in batch.tensor_split(self.batch_parts)])

    return type(f"{kind.__name__}InParts", (kind,), {"forward": forward})
