"""The settings of the paper's experiments."""

from __future__ import annotations

from dataclasses import dataclass

from hpt_mlflow.augment.subset import AUGMENTATIONS, parse_subset
from hpt_mlflow.errors import HptError
from hpt_mlflow.options import option
from hpt_mlflow.settings.common import parse_count
from hpt_mlflow.settings.evaluate import PROTOCOLS
from hpt_mlflow.settings.training import TrainingSettings

STUDIES = ("separability", "semi-supervised", "sequential", "augmentation", "data-amount")


@dataclass(frozen=True, kw_only=True)
class StudySettings(TrainingSettings):
    """One of the paper's experiments on images of your own: all its trainings and evaluations, and the answer."""

    study: str = option(
        "separability",
        "separability: accuracy against pretraining steps; semi-supervised: fine-tuning on few labels; sequential: "
        "which stages, in a row, are best; augmentation: what is lost without some augmentations; data-amount: how "
        "many images of the target it takes.",
        choices=STUDIES,
    )
    base: str = option("builtin:mnist", "Images that the Base learns from.")
    base_model: str | None = option(None, "Registered model to take for the Base, instead of training one on base.")
    source: str | None = option(None, "Images of a stage between base and target, nearer to the target. Default: none.")
    target: str = option("builtin:digits", "Labelled images that the models are for.")
    base_steps: int | None = option(None, "Optimiser steps on base. Default: the preset's.", minimum=1)
    source_steps: int | None = option(None, "Optimiser steps on source. Default: as on the target.", minimum=1)
    steps: int | None = option(
        None, "Optimiser steps on the target, of all methods alike. Default: the preset's of adapt.", minimum=1
    )
    adapt_learning_rate: float | None = option(
        None,
        "Peak learning rate of what starts from a model, on source and target. Default: learning_rate, or the preset's "
        "for it.",
        above=0,
    )
    seeds: int = option(3, "Repetitions, each with weights, views and a split of its own.", minimum=1, maximum=100)
    protocol: str = option(
        "fast", "How models are evaluated (see evaluate); semi-supervised is always fine-tuned.", choices=PROTOCOLS[:2]
    )
    protocol_steps: int | None = option(
        None,
        "Steps of the paper's probe, or of each of semi-supervised's fine-tunings. Default: the paper's.",
        minimum=1,
    )
    labels: str = option("1000,100%", "Of semi-supervised: numbers or percentages of labels, separated by commas.")
    amounts: str = option("1%,10%,25%,50%,100%", "Of data-amount: numbers or percentages of the target's images.")
    every_subset: bool = option(False, "Of augmentation: all 32 subsets, instead of the paper's five.")
    at_once: int = option(1, "Stages that run side by side on this machine, each on a share of the cores.", minimum=1)
    dry_run: bool = option(False, "Only say what would be run, its cost in steps, and about how long it would take.")
    milestones: str = option(
        "2%,5%,10%,20%,35%,50%,75%,100%",
        "Of separability: when models on the target are looked at, as comma-separated steps or percentages.",
    )
    model_name: str = option("hpt-study", "Name of the registered model that gets the results as new versions.")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("labels", "amounts"):
            for text in listed(getattr(self, name)):
                parse_count(name, text)
            if not listed(getattr(self, name)):
                raise HptError(f"{name}: none is named; write for example 10%,100%")
        if self.base_steps is not None and self.base_model is not None:
            raise HptError(
                "base_steps: a Base that is registered is not trained; leave it out, or leave base_model out"
            )
        if self.source_steps is not None and self.source is None:
            raise HptError("source_steps: there is no source to train on; name one with source, or leave it out")
        if self.study == "sequential" and self.source is None:
            raise HptError("source: sequential compares chains with and without a source; name one")
        if self.study == "augmentation" and set(parse_subset(self.augment)) != set(AUGMENTATIONS):
            raise HptError("augment: the study named augmentation chooses them itself; leave it out")
        if self.study == "data-amount" and self.images is not None:
            raise HptError("images: the study named data-amount chooses them itself; use amounts")
        if self.split_seed:
            raise HptError("split_seed: each seed of a study has a split of its own; use seed")
        if self.protocol_steps is not None and self.study != "semi-supervised" and self.protocol == "fast":
            raise HptError("protocol_steps: the probe of protocol fast has none; use it with paper, or semi-supervised")
        if self.alias is not None:
            raise HptError("alias: a study registers many versions; name one yourself with hpt promote")


def listed(text: str) -> list[str]:
    """What stands between commas."""
    return [part.strip() for part in text.split(",") if part.strip()]
