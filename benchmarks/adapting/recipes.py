"""Ways to adapt that were tried, by name: changes to the settings of `hpt adapt`, to its plan, or to its method."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from hpt_mlflow.group import Group
from hpt_mlflow.methods import METHODS, Registration, register_method
from hpt_mlflow.methods.base import Method, StepResult, Views
from hpt_mlflow.methods.moco import MoCo

MOCO = METHODS["moco"]


class Recipe(NamedTuple):
    """What differs from the defaults of `hpt adapt`.

    Attributes:
        settings: options of `hpt adapt`.
        plan: values of the plan that are no options.
        from_random: whether it starts from random weights of the same network instead of from the Base.
    """

    settings: Mapping[str, Any] = {}
    plan: Mapping[str, Any] = {}
    from_random: bool = False


class Distilled(MoCo):
    """MoCo that is also drawn to the parent's features of the same view: 1 minus their cosine similarity."""

    passes = MoCo.passes + 1
    strength = 1.0

    def __init__(self, backbone: nn.Module, feature_size: int, options: Mapping[str, Any], group: Group) -> None:
        super().__init__(backbone, feature_size, options, group)
        self.parent = copy.deepcopy(backbone).requires_grad_(False)

    @override
    def train(self, mode: bool = True) -> Distilled:
        """The parent stays as it is."""
        super().train(mode)
        self.parent.eval()
        return self

    @override
    def forward(self, views: Views, step: int) -> StepResult:
        result = super().forward(views, step)
        with torch.no_grad():
            target = self.parent(views[0]).flatten(1)
        distance = 1 - F.cosine_similarity(self.backbone(views[0]).flatten(1), target).mean()
        return result._replace(loss=result.loss + self.strength * distance)


class Anchored(MoCo):
    """MoCo whose weights are drawn to the parent's (L2-SP: Li et al., ICML 2018)."""

    strength = 0.1

    def __init__(self, backbone: nn.Module, feature_size: int, options: Mapping[str, Any], group: Group) -> None:
        super().__init__(backbone, feature_size, options, group)
        for name, parameter in backbone.named_parameters():
            self.register_buffer(f"parent_{name.replace('.', '_')}", parameter.detach().clone())

    @override
    def forward(self, views: Views, step: int) -> StepResult:
        result = super().forward(views, step)
        anchors = [
            (parameter - getattr(self, f"parent_{name.replace('.', '_')}")).square().sum()
            for name, parameter in self.backbone.named_parameters()
        ]
        return result._replace(loss=result.loss + self.strength * torch.stack(anchors).sum())


class Diet(Method):
    """Every image is a class of its own (DIET-CP: arXiv 2509.06990): a linear head, and label smoothing.

    The backbone learns only after the first `head_first` of the steps.
    """

    title = "DIET"
    views = 1
    passes = 3
    metrics = ("top1",)
    smoothing = 0.3
    head_first = 0.0

    def __init__(self, backbone: nn.Module, feature_size: int, options: Mapping[str, Any], group: Group) -> None:
        super().__init__(backbone, feature_size, options, group)
        self.encoder = nn.Sequential(backbone, nn.Flatten())
        self.head = nn.Linear(feature_size, int(options["images"]))
        # Which images are in the next step; the benchmark sets it.
        self.indices = torch.empty(0, dtype=torch.int64)

    @property
    @override
    def backbone(self) -> nn.Module:
        return self.encoder[0]

    @property
    @override
    def networks(self) -> Sequence[nn.Module]:
        return (self.encoder,)

    @override
    def forward(self, views: Views, step: int) -> StepResult:
        features: Tensor = self.encoder(views[0]).float()
        if step < self.head_first * self.steps:
            features = features.detach()
        logits = self.head(features)
        loss = F.cross_entropy(logits, self.indices, label_smoothing=self.smoothing)
        right = (logits.argmax(dim=1) == self.indices).float().mean()
        return StepResult(loss, [right.detach()], F.normalize(features.detach(), dim=1))

    @classmethod
    @override
    def chance(cls, options: Mapping[str, Any], batch_size: int) -> str:
        return ""


class DietHeadFirst(Diet):
    """DIET whose head learns alone in the first quarter."""

    head_first = 0.25


for method in (Distilled, Anchored):
    register_method(method.__name__.lower(), MOCO._replace(place=f"{__name__}:{method.__name__}"))
for diet in (Diet, DietHeadFirst):
    place = f"{__name__}:{diet.__name__}"
    register_method(diet.__name__.lower(), Registration(place, {}, {"quick": {"images": 0}}))

# As the paper adapts, with its optimiser, learning rate and statistics, but on the batches of the default.
PAPER = {"preset": "quick", "batch_size": 64}

RECIPES = {
    "gentle": Recipe(),
    "quick": Recipe({"preset": "quick"}),
    "Base": Recipe({**PAPER, "update": "bn-stats"}),
    "Target": Recipe(PAPER, from_random=True),
    "HPT": Recipe(PAPER),
    "HPT-BN": Recipe({**PAPER, "update": "bn"}),
    "statistics=refresh": Recipe({"statistics": "refresh"}),
    **{f"update={update}": Recipe({"update": update}) for update in ("norm", "last:1", "lora", "explora")},
    **{
        f"update={update}, learning_rate={rate}": Recipe({"update": update, "learning_rate": float(rate)})
        for update in ("norm", "last:1", "lora", "explora")
        for rate in ("1e-3", "3e-3", "1e-2")
    },
    **{
        f"update={update}, learning_rate={rate}, head_rate=1": Recipe(
            {"update": update, "learning_rate": float(rate)}, {"head_rate": 1.0}
        )
        for update in ("norm", "last:1", "lora", "explora")
        for rate in ("1e-3", "3e-3")
    },
    "learning_rate=1e-4": Recipe({"learning_rate": 1e-4}),
    "learning_rate=3e-4": Recipe({"learning_rate": 3e-4}),
    "learning_rate=1e-3": Recipe({"learning_rate": 1e-3}),
    "head_rate=1": Recipe(plan={"head_rate": 1.0}),
    "weight_decay=0.1": Recipe({"weight_decay": 0.1}),
    "temperature=0.2": Recipe({"temperature": 0.2}),
    "crop_scale=0.2:1": Recipe({"strengths": "crop_scale=0.2:1"}),
    "crop_scale=0.5:1": Recipe({"strengths": "crop_scale=0.5:1"}),
    "the paper's strengths": Recipe({"strengths": "crop_scale=0.2:1,hue=0.4,blur_sigma=0.1:2"}),
    "simclr": Recipe({"method": "simclr"}),
    "byol": Recipe({"method": "byol"}),
    "lejepa": Recipe({"method": "lejepa"}),
    "dino": Recipe({"method": "dino"}),
    "layer_decay=0.8": Recipe({"layer_decay": 0.8}),
    "L2-SP": Recipe({"method": "anchored"}),
    "distillation": Recipe({"method": "distilled"}),
    "diet": Recipe({"method": "diet"}),
    "diet, head first": Recipe({"method": "dietheadfirst"}),
}
