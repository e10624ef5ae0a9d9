"""Which sequence of stages is best (Reed et al., WACV 2022)."""

from __future__ import annotations

from collections.abc import Iterator

from matplotlib.figure import Figure

from hpt_mlflow.errors import HptError
from hpt_mlflow.experiments.base import UNTRAINED, Study
from hpt_mlflow.experiments.chains import Chains
from hpt_mlflow.experiments.claims import Claim
from hpt_mlflow.experiments.figure import side_by_side
from hpt_mlflow.experiments.plan import Job
from hpt_mlflow.experiments.results import Results
from hpt_mlflow.settings import StudySettings


class Sequential(Study):
    """All sequences of Base (B), Source (S) and Target (T)."""

    name = "sequential"
    title = "Which stages, in a row, are best"
    result_method = "B+S+T"

    def check(self, settings: StudySettings) -> None:
        """Raise HptError if there is no source."""
        if settings.source is None:
            raise HptError("sequential compares chains with and without a source", "name one", setting="source")

    def evaluations(self, chains: Chains) -> Iterator[tuple[str, str, Job]]:
        """What has not learned on the target gets its batch-norm statistics there."""
        base, source = chains.base(), chains.on_source(None, from_base=False)
        both = chains.on_source(base)
        trainings = {
            "B": chains.adapted(base, update="bn-stats"),
            "T": chains.target_alone(),
            "S": chains.adapted(source, update="bn-stats"),
            "B+T": chains.adapted(base),
            "B+S": chains.adapted(both, update="bn-stats"),
            "S+T": chains.adapted(source),
            "B+S+T": chains.adapted(both),
        }
        for sequence, training in trainings.items():
            yield sequence, "", chains.evaluated(training)

    def claims(self, results: Results) -> Iterator[Claim]:
        """B+S+T is the best sequence."""
        for other in results.methods:
            if other != "B+S+T":
                yield from self.better(results, "B+S+T", other)
        yield from self.difference(results, "B+S+T", UNTRAINED)

    def figure(self, results: Results) -> Figure:
        """The sequences side by side."""
        return side_by_side(results, "stages in a row: Base, Source, Target")
