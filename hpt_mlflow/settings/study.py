"""The settings of the paper's experiments."""

from __future__ import annotations

from dataclasses import dataclass

from hpt_mlflow.errors import HptError
from hpt_mlflow.evaluation.protocols import PROTOCOLS, probe_names
from hpt_mlflow.experiments import STUDIES, load_study
from hpt_mlflow.options import option
from hpt_mlflow.settings.common import PRESETS, parse_count
from hpt_mlflow.settings.training import TrainingSettings


@dataclass(frozen=True, kw_only=True)
class StudySettings(TrainingSettings):
    """One of the paper's experiments on images of your own: all its trainings and evaluations, and the answer."""

    study: str = option(
        "separability", "; ".join(f"{name}: {study.about}" for name, study in STUDIES.items()) + ".", choices=STUDIES
    )
    base: str = option("builtin:noto", "Images that the Base learns from.", main=True, changes_result=False)
    preset: str = option("quick", "Defaults of all training options (see adapt).", choices=PRESETS, passed_on=True)
    base_model: str | None = option(None, "Registered model to take for the Base, instead of training one on base.")
    source: str | None = option(
        None,
        "Images of a stage between base and target, nearer to the target. Default: none.",
        main=True,
        changes_result=False,
    )
    target: str = option("builtin:twemoji", "Labelled images that the models are for.", main=True, changes_result=False)
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
        "fast", "How models are evaluated (see evaluate); semi-supervised is always fine-tuned.", choices=PROTOCOLS
    )
    protocol_steps: int | None = option(
        None,
        "Steps of the paper's probe, or of each of semi-supervised's fine-tunings. Default: the paper's.",
        minimum=1,
    )
    labels: str = option("1000,100%", "Of semi-supervised: numbers or percentages of labels, separated by commas.")
    amounts: str = option("1%,10%,25%,50%,100%", "Of data-amount: numbers or percentages of the target's images.")
    methods: str | None = option(
        None,
        "Of methods: names of those to compare, separated by commas; each takes as many steps as fit into the time of "
        "steps with moco. Default: all.",
    )
    every_subset: bool = option(False, "Of augmentation: all 32 subsets, instead of the paper's five.")
    at_once: int = option(
        1,
        "Stages that run side by side on this machine, each on a share of the cores.",
        minimum=1,
        changes_result=False,
    )
    dry_run: bool = option(
        False, "Only print what would be run, its cost in steps, and an estimate of the time.", changes_result=False
    )
    milestones: str = option(
        "2%,5%,10%,20%,35%,50%,75%,100%",
        "Of separability: when models on the target are looked at, as comma-separated steps or percentages.",
    )
    own_lengths: bool = option(
        False,
        "Of separability: train anew for each milestone, with a schedule that ends there, as the paper does; otherwise "
        "all milestones are of one training.",
    )
    model_name: str = option(
        "hpt-study", "Name of the registered model that gets the results as new versions.", passed_on=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("labels", "amounts"):
            counts = listed(getattr(self, name))
            if not counts:
                raise HptError("it names none", "write for example 10%,100%", setting=name)
            for text in counts:
                parse_count(name, text)
        if self.base_steps is not None and self.base_model is not None:
            raise HptError("a registered Base is not trained", "leave it or base_model out", setting="base_steps")
        if self.source_steps is not None and self.source is None:
            problem, remedy = "there is no source to train on", "name one with source, or leave it out"
            raise HptError(problem, remedy, setting="source_steps")
        if self.split_seed:
            raise HptError("each seed of a study has its own split", "use seed", setting="split_seed")
        if PROTOCOLS[self.protocol].trains_backbone:
            problem = f"{self.protocol} trains the backbone"
            remedy = f"use one of {', '.join(probe_names())}, or the study semi-supervised"
            raise HptError(problem, remedy, setting="protocol")
        study = load_study(self.study)
        protocol = study.protocol or self.protocol
        if self.protocol_steps is not None and not PROTOCOLS[protocol].takes_steps:
            problem, remedy = f"protocol {protocol} has no steps", "use it with paper, or semi-supervised"
            raise HptError(problem, remedy, setting="protocol_steps")
        if self.alias is not None:
            problem, remedy = "a study registers many versions", "choose one yourself with hpt promote"
            raise HptError(problem, remedy, setting="alias")
        study.check(self)


def listed(text: str) -> list[str]:
    """The parts between commas."""
    return [part.strip() for part in text.split(",") if part.strip()]
