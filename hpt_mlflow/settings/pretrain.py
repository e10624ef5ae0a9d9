"""The settings of pretrain."""

from __future__ import annotations

from dataclasses import dataclass

from hpt_mlflow.errors import HptError
from hpt_mlflow.options import option
from hpt_mlflow.settings.training import TrainingSettings

DEFAULT_WEIGHTS, RANDOM = "efficientnet-lite0", "random"


@dataclass(frozen=True, kw_only=True)
class PretrainSettings(TrainingSettings):
    """Self-supervised training from random or imported weights."""

    data: str = option(
        "builtin:noto",
        "Images to learn from: FOLDER, folder:, list:, csv:, shards:, zip:, parquet:, paper:, builtin: or "
        "torchvision:.",
        main=True,
        changes_result=False,
    )
    weights: str | None = option(
        None,
        "Weights to start from: efficientnet-lite0 (trained on ImageNet); a file of DINOv2, DINOv3, MAE, MoCo, "
        "OpenSelfSup, torchvision, timm or Lightly (ResNets, ConvNeXts and vision transformers are recognised, others "
        "need arch); torchvision:NAME, such as torchvision:resnet50; or random. Default: efficientnet-lite0; with "
        "arch, small_stem or preset=paper: random.",
        main=True,
        changes_result=False,
    )
    image_size: int | None = option(
        None,
        "Side of the square views, in pixels. Default: 32 from random weights, 64 from others, or "
        "the next multiple of a vision transformer's patches; with preset=paper 224.",
        minimum=8,
        maximum=2048,
    )
    steps: int | None = option(
        None, "Length of the training, in optimiser steps; 0: register the weights as they are.", minimum=0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps == 0 and self.starts_from is None:
            raise HptError(
                "0 registers the weights as they are, and there are none",
                "name them with weights, or train for at least 1 step",
                setting="steps",
            )

    @property
    def starts_from(self) -> str | None:
        """The weights to start from; None for random ones."""
        if self.weights is None:
            return None if self.arch or self.small_stem or self.preset == "paper" else DEFAULT_WEIGHTS
        return None if self.weights == RANDOM else self.weights
