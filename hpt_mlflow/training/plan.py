"""All values that a training needs: what a preset says and what the user changed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from hpt_mlflow.augment.subset import AUGMENTATIONS, Strengths
from hpt_mlflow.methods import DEFAULT_METHOD, METHODS
from hpt_mlflow.models.update import Update, parse_update


@dataclass(frozen=True)
class Plan:
    """How one stage trains.

    Attributes:
        steps: optimiser steps.
        batch_size: images a step, of all processes together.
        learning_rate: peak learning rate.
        warmup_steps: steps over which the learning rate rises from 0 to its peak, linearly.
        weight_decay: of the optimiser, on all parameters.
        method: name of the self-supervised method.
        options: those of the method.
        subset: the augmentations that make a view.
        strengths: how strong they are.
        update: what may change, as users write it.
        lora_rank, lora_targets: of low-rank changes, as users write them; None for the default, and where there are
            none.
        statistics: `refresh`: the backbone's BatchNorm normalises by the statistics of each batch, and averages them
            for the result, and images are normalised by those of the dataset; `keep`: both stay as they were for the
            model that the stage starts from.
        optimizer: `sgd` or `adamw`.
        head_rate: learning rate of what is not the backbone, over that of the backbone.
        layer_decay: learning rate of each block of the backbone, over that of the next one.
        drop_path: with what probability the last block of the backbone is left out (`models.drop_path`); None for what
            the network's library does.
        clip_gradients: largest norm of the gradients of a step; None for any.
        precision: float32, bfloat16 or float16.
        compile: whether torch.compile makes the encoders faster.
        graph: whether a step is a CUDA graph.
        seed: of weights, order and views.
    """

    steps: int
    batch_size: int
    learning_rate: float
    warmup_steps: int
    weight_decay: float
    method: str = DEFAULT_METHOD
    options: Mapping[str, Any] = field(default_factory=dict)
    subset: tuple[str, ...] = AUGMENTATIONS
    strengths: Strengths = Strengths()
    update: str = "all"
    lora_rank: int | None = None
    lora_targets: str | None = None
    statistics: str = "refresh"
    optimizer: str = "sgd"
    head_rate: float = 1.0
    layer_decay: float = 1.0
    drop_path: float | None = None
    clip_gradients: float | None = None
    precision: str = "float32"
    compile: bool = False
    graph: bool = False
    seed: int = 0

    @property
    def what_learns(self) -> Update:
        """What may change."""
        return parse_update(self.update, self.lora_rank, self.lora_targets)

    def learning_rate_at(self, step: int) -> float:
        """Linear warm-up, and a cosine from the peak to 0 over the length of the stage (SGDR, equation 5)."""
        warmup = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        return self.learning_rate * warmup * 0.5 * (1 + math.cos(math.pi * step / self.steps))

    def as_params(self) -> dict[str, Any]:
        """Flat, for a table of parameters."""
        values = asdict(self)
        strengths, options = values.pop("strengths"), values.pop("options")
        values["subset"] = ",".join(self.subset) or "none"
        return values | options | {f"strength_{name}": value for name, value in strengths.items()}


@dataclass(frozen=True)
class Preset:
    """Values for what the user does not say.

    Attributes:
        arch, image_size: of a network with random weights.
        weights_image_size: of weights from elsewhere.
        pretrain, adapt: a stage from random weights, and from a parent or other weights; both of the default method.
    """

    arch: str
    image_size: int
    weights_image_size: int
    pretrain: Plan
    adapt: Plan


# docs/method.md says how these values were found.
_QUICK = Plan(
    steps=600,
    batch_size=256,
    learning_rate=0.12,
    warmup_steps=50,
    weight_decay=1e-4,
    options=METHODS[DEFAULT_METHOD].presets["quick"],
)
_GENTLE = Plan(
    steps=600,
    batch_size=64,
    learning_rate=3e-4,
    warmup_steps=60,
    weight_decay=0.01,
    options=METHODS[DEFAULT_METHOD].presets["quick"],
    strengths=Strengths(crop_scale=(0.3, 1.0), hue=0.1, blur_sigma=(0.1, 1.0)),
    statistics="keep",
    optimizer="adamw",
    head_rate=10.0,
)
# Vision transformers from random weights; docs/method.md says how it was found.
_ADAMW = replace(_QUICK, optimizer="adamw", learning_rate=5e-4, weight_decay=0.05)
# Paper, section 4.1 and reference code: ResNet-50, 4 GPUs of 64 images, 200,000 iterations from random weights and
# 5,000 from a base.
_PAPER = Plan(
    steps=200_000,
    batch_size=256,
    learning_rate=0.03,
    warmup_steps=0,
    weight_decay=1e-4,
    options=METHODS[DEFAULT_METHOD].presets["paper"],
)
PRESETS = {
    "quick": Preset("resnet18", 32, 64, pretrain=_QUICK, adapt=replace(_QUICK, steps=200, learning_rate=0.03)),
    "gentle": Preset("resnet18", 32, 64, pretrain=_QUICK, adapt=_GENTLE),
    "paper": Preset("resnet50", 224, 224, pretrain=_PAPER, adapt=replace(_PAPER, steps=5_000)),
}
# AdamW's learning rate from a parent whose chain began with random weights. docs/adapting.md: larger steps gain more
# from published weights, and spoil those that have not seen much.
OWN_RATE = 1e-4
# With AdamW, the learning rate of an update that touches little over that of one that changes all weights, by its kind;
# that of the head stays. docs/adapting.md says how it was found.
TOUCHES_LITTLE = {"norm": 10.0, "bn": 10.0, "lora": 10.0, "explora": 3.0}
# What an optimiser wants, by its name, and whether the stage starts from random weights.
_OF_OPTIMIZERS = {
    ("sgd", True): _QUICK,
    ("sgd", False): PRESETS["quick"].adapt,
    ("adamw", True): _ADAMW,
    ("adamw", False): _GENTLE,
}


def with_optimizer(plan: Plan, optimizer: str, from_random: bool) -> Plan:
    """A preset's plan with an optimiser, and the rates and decay that suit it, in place of its own."""
    if optimizer == plan.optimizer:
        return plan
    like = _OF_OPTIMIZERS[optimizer, from_random]
    return replace(
        plan,
        optimizer=optimizer,
        learning_rate=like.learning_rate,
        weight_decay=like.weight_decay,
        head_rate=like.head_rate,
        warmup_steps=like.warmup_steps,
    )
