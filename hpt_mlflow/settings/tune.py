"""The settings of a search for the augmentations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hpt_mlflow.augment.subset import AUGMENTATIONS, parse_subset
from hpt_mlflow.errors import HptError
from hpt_mlflow.evaluation.objectives import OBJECTIVES
from hpt_mlflow.options import option
from hpt_mlflow.settings.adapt import AdaptSettings

PRUNERS = ("halving", "hyperband", "none")

# Marks of options that a resumed search may change: they change no trial, and parameters of a run cannot change.
BUDGET: dict[str, Any] = {"changes_trial": False, "logged": False}


@dataclass(frozen=True, kw_only=True)
class TuneSettings(AdaptSettings):
    """Find the augmentations that suit the images: short adaptations of one parent, the best repeated in full."""

    augment: str = option(
        ",".join(AUGMENTATIONS),
        f"Augmentations to choose from: a comma-separated choice of {', '.join(AUGMENTATIONS)}.",
    )
    tune_strengths: bool = option(
        False, "Also search the strengths of the augmentations, with Optuna's TPE; else only the grid of subsets."
    )
    objective: str = option(
        "auto",
        "The score of a trial. probe: linear probe on validation; knn: nearest neighbours on validation; rotation: "
        "predicting the rotation of images, which needs no labels; consistency: whether views have the neighbours of "
        "their images, without labels; infonce: the training loss, a weak indicator. auto: probe if there are labels, "
        "else rotation.",
        choices=("auto", *OBJECTIVES),
    )
    study: str | None = option(
        None,
        "Name of the search in the storage (an Optuna study); the same name resumes it. Default: made from data, "
        "parent and settings.",
        changes_trial=False,
    )
    storage: str = option(
        "journal:hpt_studies.journal",
        "Where the search is stored: journal:FILE, or a database such as postgresql://USER:PASSWORD@HOST/DATABASE, "
        "which needs the extra postgresql.",
        **BUDGET,
    )
    steps: int | None = option(
        None, "Length of the winner's adaptation, in optimiser steps.", minimum=1, changes_trial=False
    )
    trial_steps: int | None = option(
        None, "Length of a whole trial, in optimiser steps. Default: half of steps.", minimum=1
    )
    pruner: str = option(
        "halving",
        "Which trials continue after a rung. halving: the best of all, by successive halving; hyperband: Optuna's, "
        "with brackets that begin at later rungs; none: every trial is trained in full.",
        choices=PRUNERS,
    )
    first_rung: int | None = option(
        None, "Steps of a trial before it is first scored. Default: 1/32 of trial_steps.", minimum=1
    )
    reduction: int = option(4, "One trial in N continues after a rung, and the next rung is N times as far.", minimum=2)
    trials: int | None = option(
        None,
        "Maximum number of trials. Default: all subsets; with tune_strengths twice as many.",
        minimum=1,
        **BUDGET,
    )
    minutes: float | None = option(
        None,
        "Maximum minutes that this command spends on trials. Default: no limit.",
        above=0,
        **BUDGET,
    )
    workers: int = option(
        1,
        "Search workers: processes that run trials in parallel on this machine, each on a GPU or a share of the cores.",
        minimum=1,
        changes_result=False,
        **BUDGET,
    )
    resume: str = option(
        "auto",
        "auto: reuse the full adaptations that this search has already made; never: repeat them. The search itself is "
        "resumed by its name.",
        choices=("auto", "never"),
        changes_result=False,
    )
    adapt_winner: bool = option(
        True,
        "Adapt in full with the best subset and with the paper's; evaluate both on test; register the best.",
        **BUDGET,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not parse_subset(self.augment):
            raise HptError(
                "none leaves nothing to choose from", "name the augmentations that may be used", setting="augment"
            )
