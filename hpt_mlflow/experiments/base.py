"""What a study is: the evaluations that it needs, what the paper claims about them, and the figure that shows them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import ClassVar

from matplotlib.figure import Figure

from hpt_mlflow.experiments.chains import Chains
from hpt_mlflow.experiments.claims import Claim, compare
from hpt_mlflow.experiments.plan import Job, Point, StudyPlan
from hpt_mlflow.experiments.results import Results
from hpt_mlflow.models.architecture import Architecture
from hpt_mlflow.settings import StudySettings

METHODS = ("Base", "Target", "HPT", "HPT-BN")
UNTRAINED = "an untrained network"
OF_THE_PAPER = (
    "Held means that the interval lies on the claimed side of no difference, the opposite that it lies on the other "
    "side, and not shown that it has both, or that one seed has no interval. The paper says as good or better, so only "
    "the opposite speaks against it. Where HPT is there at its first milestone, it may have been sooner: such a ratio "
    "has no interval, and only six seeds that all agree are sure. All methods took the same number of steps on the "
    "target, where the paper gave Target as many as it needed: this asks what a start from the Base is worth within "
    "those steps."
)


class Study(ABC):
    """An experiment, such as one of the paper. Each is a subclass, and everything that is true of it alone is there.

    Attributes:
        name: as it is registered.
        title: the question that it answers, as a heading.
        result_method: the method whose model is the result of the study.
        protocol: of its evaluations; empty if the settings choose it.
        how_to_read: what the page says about its claims.
        own_names: by the name of a stage's setting, the study's setting that decides it, for errors.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    result_method: ClassVar[str] = "HPT"
    protocol: ClassVar[str] = ""
    how_to_read: ClassVar[str] = OF_THE_PAPER
    own_names: ClassVar[Mapping[str, str]] = {}

    def check(self, settings: StudySettings) -> None:  # noqa: B027 - most studies have nothing to check.
        """Raise HptError if the study cannot be run with these settings."""

    @abstractmethod
    def evaluations(self, chains: Chains) -> Iterator[tuple[str, str, Job]]:
        """All evaluations of one seed, in the order of the figure: method, condition (empty for none) and job."""

    @abstractmethod
    def claims(self, results: Results) -> Iterable[Claim]:
        """The paper's claims, and the comparisons behind them; those without results are left out."""

    @abstractmethod
    def figure(self, results: Results) -> Figure:
        """The paper's figure: means over the seeds with 95% intervals, in percent."""

    def condition_text(self, condition: str) -> str:
        """A condition in words, such as `10% of the labels`."""
        return condition

    def plan(self, settings: StudySettings, images: int, network: Architecture | None = None) -> StudyPlan:
        """Everything that the study runs, for all seeds.

        Args:
            images: of the target, that training may see.
            network: of the registered Base, if there is one; what starts from random weights has it too.
        """
        points: list[Point] = []
        for seed in range(settings.seed, settings.seed + settings.seeds):
            chains = Chains(settings, seed, images, network)
            points += [Point(method, condition, seed, job) for method, condition, job in self.evaluations(chains)]
        return StudyPlan(tuple(points))

    def result(self, plan: StudyPlan) -> Job:
        """The training whose model is the result: the first one of `result_method`, with the first seed."""
        return self._trainings_of_result(plan)[0]

    def better(self, results: Results, one: str, other: str, condition: str = "") -> list[Claim]:
        """The claim that a method is better than another one."""
        text = f"{self._where(condition)}{one} better than {other}"
        return compare(text, results.last(one, condition), results.last(other, condition))

    def difference(self, results: Results, one: str, other: str, condition: str = "") -> list[Claim]:
        """The difference of two methods; the paper does not claim which one is better."""
        text = f"{self._where(condition)}{one} minus {other}"
        others = results.untrained if other == UNTRAINED else results.last(other, condition)
        return compare(text, results.last(one, condition), others, is_claimed=False)

    def _where(self, condition: str) -> str:
        return f"With {self.condition_text(condition)}: " if condition else ""

    def _trainings_of_result(self, plan: StudyPlan) -> list[Job]:
        first_seed = plan.points[0].seed
        wanted = [point for point in plan.points if (point.method, point.seed) == (self.result_method, first_seed)]
        return [point.evaluation.start for point in wanted if point.evaluation.start]


def share_text(condition: str, things: str) -> str:
    """A number or percentage of things in words: `20 labels`, `10% of the labels`."""
    return f"{condition} of the {things}" if condition.endswith("%") else f"{condition} {things}"
