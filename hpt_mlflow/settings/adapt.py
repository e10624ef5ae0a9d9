"""The settings of adapt."""

from __future__ import annotations

from dataclasses import dataclass

from hpt_mlflow.errors import HptError
from hpt_mlflow.evaluation.objectives import OBJECTIVES
from hpt_mlflow.models.architecture import FEATURES
from hpt_mlflow.models.update import DEFAULT_RANK, parse_update
from hpt_mlflow.options import option
from hpt_mlflow.settings.common import DEFAULT_MODEL_NAME
from hpt_mlflow.settings.training import TrainingSettings

STATISTICS = ("keep", "refresh")
STORES = ("whole", "delta")


@dataclass(frozen=True, kw_only=True)
class AdaptSettings(TrainingSettings):
    """Self-supervised training that continues from a registered model."""

    data: str = option(
        "builtin:twemoji",
        "Images to adapt to: FOLDER, folder:, list:, csv:, shards:, zip:, parquet:, paper:, builtin: or torchvision:.",
        main=True,
        changes_result=False,
    )
    arch: str | None = option(None, "Backbone. Default: the parent's; another one is refused.")
    image_size: int | None = option(
        None, "Side of the square views, in pixels. Default: the parent's.", minimum=8, maximum=2048
    )
    features: str | None = option(
        None,
        "Features of a vision transformer: its class token, the mean of its patches, or both. Default: the parent's.",
        choices=FEATURES,
    )
    parent: str = option(
        f"models:/{DEFAULT_MODEL_NAME}/latest",
        "Model to start from: a models:/ or runs:/ address, NAME@ALIAS, or an alias of --model-name.",
        main=True,
    )
    statistics: str | None = option(
        None,
        "What BatchNorm and images are normalised with. keep: what the parent used; refresh: the statistics of these "
        "images.",
        choices=STATISTICS,
    )
    judge: str = option(
        "auto",
        "What chooses the best milestone, the parent among them. knn, probe: how well features predict labels, by "
        "validation; rotation: how well features predict rotations, without labels; consistency: whether views have "
        "the neighbours of their images, without labels, among milestones that are not below the parent by rotation; "
        "none: the last step is taken. auto: knn with labels, else consistency.",
        choices=("auto", "none", *(name for name in OBJECTIVES if OBJECTIVES[name].place)),
        changes_trial=False,
    )
    on_no_gain: str = option(
        "keep-parent",
        "If the judge prefers the parent to every milestone. keep-parent: register nothing, the result is the parent; "
        "register: register the best milestone all the same.",
        choices=("keep-parent", "register"),
        changes_trial=False,
    )
    update: str = option(
        "all",
        "What may change. all: everything (HPT); norm: only normalisation layers, such as LayerNorm; last:N: the last "
        "N blocks, and what follows them; lora: low-rank changes of layers; explora or explora:N: the last N blocks "
        "(1) and all normalisation layers, and low-rank changes of the others; bn: only BatchNorm layers (HPT-BN); "
        "bn-stats: only their running statistics, without any gradient (the paper's Base).",
        main=True,
    )
    lora_rank: int | None = option(
        None, f"Rank of low-rank changes, for update lora and explora. Default: {DEFAULT_RANK}.", minimum=1
    )
    lora_targets: str | None = option(
        None,
        "Layers that get low-rank changes: comma-separated ends of their names, such as attn.qkv,mlp.fc1. Default: the "
        "attention of a transformer; of another network, all linear layers and 1x1 convolutions.",
    )
    store: str = option(
        "whole",
        "What a milestone keeps. whole: all weights; delta: only those that differ from the parent's, and of low-rank "
        "changes the two matrices; not for update=all. A delta is used like any other version, but its parent, a "
        "registered version, must not be deleted, and it does not stand alone: hpt make-whole copies it with all "
        "weights.",
        choices=STORES,
        changes_trial=False,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_update(self.update, self.lora_rank, self.lora_targets)
        if self.update == "bn-stats" and self.statistics == "keep":
            raise HptError("update bn-stats learns nothing but the statistics", "use refresh", setting="statistics")
        if self.store == "delta" and self.update == "all":
            raise HptError(
                "with update=all every weight differs from the parent's, so that delta saves nothing",
                "use whole, or an update such as lora or norm",
                setting="store",
            )
