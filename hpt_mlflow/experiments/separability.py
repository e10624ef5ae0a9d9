"""Accuracy against pretraining steps (Reed et al., WACV 2022)."""

from __future__ import annotations

from collections.abc import Iterator

from matplotlib.figure import Figure

from hpt_mlflow.experiments.base import METHODS, UNTRAINED, Study
from hpt_mlflow.experiments.chains import Chains
from hpt_mlflow.experiments.claims import Claim
from hpt_mlflow.experiments.figure import BASE_AS_IS, against_steps
from hpt_mlflow.experiments.plan import Job, StudyPlan
from hpt_mlflow.experiments.results import Results
from hpt_mlflow.experiments.sooner import sooner_claims
from hpt_mlflow.training.milestones import parse_milestones


class Separability(Study):
    """How good features become, and how soon: each method at its `milestones`, or after trainings of these lengths."""

    name = "separability"
    title = "How good features become, and how soon"

    def evaluations(self, chains: Chains) -> Iterator[tuple[str, str, Job]]:
        """The four methods, and the Base without the refresh of its statistics that the paper gives it."""
        # A registered Base takes images of its own size: at another one, more than the method would differ.
        if chains.settings.base_model is None or chains.settings.image_size is None:
            yield BASE_AS_IS, "", chains.base_as_is()
        for method in METHODS:
            if method == "Base":
                yield method, "", chains.evaluated(chains.on_target(method), whole_run=True)
            elif chains.settings.own_lengths:
                for steps in sorted(parse_milestones(chains.settings.milestones, chains.target_steps)):
                    # Untrained, the network is the same for all lengths.
                    beside = {} if steps == chains.target_steps else {"untrained": False}
                    yield method, "", chains.evaluated(chains.on_target(method, steps=steps), **beside)
            else:
                training = chains.on_target(method, milestones=chains.settings.milestones)
                yield method, "", chains.evaluated(training, whole_run=True)

    def result(self, plan: StudyPlan) -> Job:
        """The longest training by HPT, with the first seed."""
        return max(self._trainings_of_result(plan), key=lambda training: training.steps)

    def claims(self, results: Results) -> Iterator[Claim]:
        """HPT is as good as Base and Target or better, and gets there up to 80 times sooner."""
        yield from self.better(results, "HPT", "Target")
        yield from self.better(results, "HPT", "Base")
        yield from sooner_claims(results)
        yield from self.difference(results, "HPT-BN", "HPT")
        yield from self.difference(results, "HPT", BASE_AS_IS)
        yield from self.difference(results, "HPT", UNTRAINED)
        yield from self.difference(results, "Target", UNTRAINED)

    def figure(self, results: Results) -> Figure:
        """A curve per method; a level for what does not learn on the target."""
        return against_steps(results)
