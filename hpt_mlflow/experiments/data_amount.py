"""How many images of the target are needed (Reed et al., WACV 2022)."""

from __future__ import annotations

from collections.abc import Iterator

from matplotlib.figure import Figure

from hpt_mlflow.errors import HptError
from hpt_mlflow.experiments.base import METHODS, Study, share_text
from hpt_mlflow.experiments.chains import Chains
from hpt_mlflow.experiments.claims import Claim
from hpt_mlflow.experiments.figure import by_condition
from hpt_mlflow.experiments.plan import Job, StudyPlan
from hpt_mlflow.experiments.results import Results
from hpt_mlflow.settings import StudySettings
from hpt_mlflow.settings.study import listed


class DataAmount(Study):
    """The four methods on each of the `amounts` of the target's images."""

    name = "data-amount"
    title = "How many images of the target it takes"
    own_names = {"images": "amounts"}  # noqa: RUF012 - a constant.

    def check(self, settings: StudySettings) -> None:
        """Raise HptError if the settings choose images."""
        if settings.images is not None:
            problem = "the study named data-amount chooses them itself"
            raise HptError(problem, "use amounts", setting="images")

    def evaluations(self, chains: Chains) -> Iterator[tuple[str, str, Job]]:
        """From few images to many."""
        *_, most = amounts = sorted(listed(chains.settings.amounts), key=chains.count_of)
        for amount in amounts:
            # Other studies use all images too, by default: the same jobs.
            images = None if amount == "100%" else amount
            for method in METHODS:
                training = chains.on_target(method, images=images, **chains.cut_to(amount))
                # Normalised by as many images as there are, the untrained network is that of other studies.
                untrained = method == "Target" and amount == most
                yield method, amount, chains.evaluated(training, untrained=untrained)

    def result(self, plan: StudyPlan) -> Job:
        """The training on the most images."""
        return self._trainings_of_result(plan)[-1]

    def claims(self, results: Results) -> Iterator[Claim]:
        """HPT is best with few images; HPT-BN below about 5,000."""
        for condition in results.conditions:
            yield from self.better(results, "HPT", "Target", condition)
            yield from self.better(results, "HPT", "Base", condition)
            yield from self.difference(results, "HPT-BN", "HPT", condition)

    def figure(self, results: Results) -> Figure:
        """Each method at each number of images."""
        return by_condition(results, "images of the target")

    def condition_text(self, condition: str) -> str:
        """`30 images`, `10% of the images`."""
        return share_text(condition, "images")
