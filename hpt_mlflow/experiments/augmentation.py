"""What is lost without some augmentations (Reed et al., WACV 2022)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

from matplotlib.figure import Figure

from hpt_mlflow.augment.subset import AUGMENTATIONS, parse_subset
from hpt_mlflow.errors import HptError
from hpt_mlflow.experiments.base import Study
from hpt_mlflow.experiments.chains import Chains
from hpt_mlflow.experiments.claims import Claim, compare
from hpt_mlflow.experiments.figure import by_condition
from hpt_mlflow.experiments.plan import Job
from hpt_mlflow.experiments.results import Results
from hpt_mlflow.settings import StudySettings
from hpt_mlflow.tuning.space import PAPER_SUBSETS


class Augmentation(Study):
    """Target and HPT with fewer augmentations on the target: the paper's subsets, or all of them (`every_subset`)."""

    name = "augmentation"
    title = "What is lost without some augmentations"

    def check(self, settings: StudySettings) -> None:
        """Raise HptError if the settings choose augmentations."""
        if set(parse_subset(settings.augment)) != set(AUGMENTATIONS):
            problem = "the study named augmentation chooses them itself"
            raise HptError(problem, "leave it out", setting="augment")

    def evaluations(self, chains: Chains) -> Iterator[tuple[str, str, Job]]:
        """The subset with all augmentations comes first: the others are compared with it."""
        every = [subset for size in range(len(AUGMENTATIONS), -1, -1) for subset in combinations(AUGMENTATIONS, size)]
        for subset in every if chains.settings.every_subset else PAPER_SUBSETS:
            is_baseline = subset == AUGMENTATIONS
            condition = ",".join(subset) or "none"
            # Other studies use all augmentations too, by default: the same jobs.
            augment = None if is_baseline else condition
            for method in ("Target", "HPT"):
                training = chains.on_target(method, augment=augment)
                # An untrained network is the same under all conditions: one evaluation is enough.
                untrained = method == "Target" and is_baseline
                yield method, condition, chains.evaluated(training, untrained=untrained)

    def claims(self, results: Results) -> Iterator[Claim]:
        """HPT loses less than Target if augmentations are taken away, and stays above it."""
        baseline, *fewer = results.conditions
        for condition in fewer:
            target, hpt = (results.lost(method, condition, baseline) for method in ("Target", "HPT"))
            yield from compare(f"With {condition}: HPT loses less than Target", target, hpt)
        for condition in results.conditions:
            yield from self.better(results, "HPT", "Target", condition)

    def figure(self, results: Results) -> Figure:
        """What each method loses without some augmentations."""
        return by_condition(results, "augmentations that are left", baseline=results.conditions[0])
