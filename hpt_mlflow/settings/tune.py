"""The settings of a search for the augmentations."""

from __future__ import annotations

from dataclasses import dataclass

from hpt_mlflow.augment.subset import AUGMENTATIONS, parse_subset
from hpt_mlflow.errors import HptError
from hpt_mlflow.options import option
from hpt_mlflow.settings.training import AdaptSettings

OBJECTIVES = ("auto", "probe", "knn", "rotation", "infonce")
PRUNERS = ("halving", "hyperband", "none")


@dataclass(frozen=True, kw_only=True)
class TuneSettings(AdaptSettings):
    """Which augmentations suit the images: short adaptations of one parent, the best of them adapted in full."""

    augment: str = option(
        ",".join(AUGMENTATIONS),
        f"Augmentations to choose from: a comma-separated choice of {', '.join(AUGMENTATIONS)}.",
    )
    tune_strengths: bool = option(
        False, "Search how strong the augmentations are, too, with Optuna's TPE; else the grid of subsets alone."
    )
    objective: str = option(
        "auto",
        "What a trial is judged by. probe: linear probe on validation; knn: nearest neighbours on validation; "
        "rotation: predicting by how much an image is turned, which needs no labels; infonce: the training loss, for "
        "what it is worth. auto: probe where there are labels, else rotation.",
        choices=OBJECTIVES,
    )
    study: str | None = option(
        None,
        "Name of the Optuna study; the same name goes on with it. Default: made from data, parent and settings.",
        changes_trial=False,
    )
    storage: str = option(
        "journal:hpt_studies.journal",
        "Where the study is kept: journal:FILE, or a database such as postgresql://USER:PASSWORD@HOST/DATABASE.",
        changes_trial=False,
        logged=False,
    )
    steps: int | None = option(
        None, "Length of the winner's adaptation, in optimiser steps.", minimum=1, changes_trial=False
    )
    trial_steps: int | None = option(
        None, "Length of a whole trial, in optimiser steps. Default: a half of steps.", minimum=1
    )
    pruner: str = option(
        "halving",
        "Who goes on at a rung. halving: the best of all, by successive halving; hyperband: Optuna's, with brackets "
        "that begin later; none: every trial is trained in full.",
        choices=PRUNERS,
    )
    first_rung: int | None = option(
        None, "Steps of a trial before it is first judged. Default: 1/32 of trial_steps.", minimum=1
    )
    reduction: int = option(
        4, "One of so many trials goes on at a rung, and the next rung is so many times further.", minimum=2
    )
    trials: int | None = option(
        None,
        "Most trials of the study. Default: all subsets; with tune_strengths twice as many.",
        minimum=1,
        changes_trial=False,
        logged=False,
    )
    budget_steps: int | None = option(
        None,
        "Most optimiser steps of all trials together. Default: no limit.",
        minimum=1,
        changes_trial=False,
        logged=False,
    )
    minutes: float | None = option(
        None,
        "Most minutes that this command spends on trials. Default: no limit.",
        above=0,
        changes_trial=False,
        logged=False,
    )
    workers: int = option(
        1,
        "Processes that run trials side by side on this machine, each on a GPU or a share of the cores.",
        minimum=1,
        changes_result=False,
        changes_trial=False,
        logged=False,
    )
    resume: str = option(
        "auto",
        "auto: what this study has adapted in full before is not adapted again; never: it is. The study itself goes on "
        "by its name.",
        choices=("auto", "never"),
        changes_result=False,
    )
    adapt_winner: bool = option(
        True,
        "Adapt with the best subset in full, and with the paper's; evaluate both on test; register the best.",
        changes_trial=False,
        logged=False,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not parse_subset(self.augment):
            raise HptError("augment: none leaves nothing to choose from; name the augmentations that may be used")
