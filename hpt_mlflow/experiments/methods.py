"""Which self-supervised method adapts the Base best in equal time: a question of our own, not of the paper."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from matplotlib.figure import Figure

from hpt_mlflow.errors import HptError
from hpt_mlflow.experiments.base import Study
from hpt_mlflow.experiments.chains import Chains
from hpt_mlflow.experiments.claims import Claim
from hpt_mlflow.experiments.figure import BASE_AS_IS, side_by_side
from hpt_mlflow.experiments.plan import Job, StudyPlan
from hpt_mlflow.experiments.results import Results
from hpt_mlflow.methods import DEFAULT_METHOD, METHODS, all_options, load_method, options_of
from hpt_mlflow.settings import StudySettings
from hpt_mlflow.settings.study import listed


class Methods(Study):
    """HPT on the target by each method, and the Base as it is.

    Methods differ in how often an image passes through the network in a step, so that in equal time some take more
    steps than others. Times are equal by that count; the table of the results has the measured ones.
    """

    name = "methods"
    title = "Which method is best in equal time"
    how_to_read = (
        "Each method took as many steps as fit into equal time, counted in passes of images through the network; the "
        "table has the seconds that they took."
    )
    own_names: ClassVar[Mapping[str, str]] = {"method": "methods"}

    def check(self, settings: StudySettings) -> None:
        """Raise HptError if there is nothing to compare."""
        names = methods_of(settings)
        for name in names:
            if name not in METHODS:
                raise HptError(f"{name!r} is unknown", f"use some of {', '.join(METHODS)}", setting="methods")
        if len(set(names)) < 2 or len(set(names)) < len(names):
            raise HptError("a comparison takes two different methods or more", "name them", setting="methods")

    def evaluations(self, chains: Chains) -> Iterator[tuple[str, str, Job]]:
        """The Base comes first: a method that is not above it does harm."""
        yield BASE_AS_IS, "", chains.base_as_is()
        for name in methods_of(chains.settings):
            others: dict[str, Any] = dict.fromkeys(all_options().keys() - options_of(name))
            training = chains.adapted(
                chains.before_target(), method=name, steps=_steps(name, chains.target_steps), **others
            )
            yield name, "", chains.evaluated(training)

    def result(self, plan: StudyPlan) -> Job:
        """The training by the first method, with the first seed."""
        trainings = (point.evaluation.start for point in plan.points if point.method != BASE_AS_IS)
        return next(training for training in trainings if training)

    def claims(self, results: Results) -> Iterator[Claim]:
        """The paper compares no methods: differences from the Base, and of the best method from the others."""
        names = [name for name in results.methods if name != BASE_AS_IS]
        means = {name: mean.value for name in names if (mean := results.mean(name))}
        best = max(means, key=means.__getitem__)
        yield Claim(f"Highest mean: {best}")
        for name in names:
            yield from self.difference(results, name, BASE_AS_IS)
        for name in names:
            if name != best:
                yield from self.difference(results, best, name)

    def figure(self, results: Results) -> Figure:
        """The methods side by side."""
        return side_by_side(results, "method")


def methods_of(settings: StudySettings) -> list[str]:
    """Names of the methods to compare."""
    return list(METHODS) if settings.methods is None else listed(settings.methods)


def _steps(name: str, steps: int) -> int:
    """Steps of a method that take as long as `steps` of the default method."""
    return max(1, round(steps * load_method(DEFAULT_METHOD).passes / load_method(name).passes))
