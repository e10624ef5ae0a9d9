"""Fine-tuning on few labels (Reed et al., WACV 2022)."""

from __future__ import annotations

from collections.abc import Iterator

from matplotlib.figure import Figure

from hpt_mlflow.experiments.base import METHODS, Study, share_text
from hpt_mlflow.experiments.chains import Chains
from hpt_mlflow.experiments.claims import Claim
from hpt_mlflow.experiments.figure import by_condition
from hpt_mlflow.experiments.plan import Job
from hpt_mlflow.experiments.results import Results
from hpt_mlflow.settings.study import listed


class SemiSupervised(Study):
    """What the methods are worth with few labels: each one is fine-tuned on each number of `labels`."""

    name = "semi-supervised"
    title = "Fine-tuning on few labels"
    protocol = "finetune"

    def evaluations(self, chains: Chains) -> Iterator[tuple[str, str, Job]]:
        """Each method is trained once, and fine-tuned on each number of labels."""
        for labels in listed(chains.settings.labels):
            for method in METHODS:
                evaluation = chains.evaluated(
                    chains.on_target(method),
                    protocol=self.protocol,
                    labels=labels,
                    steps=chains.settings.protocol_steps,
                    untrained=False,
                )
                yield method, labels, evaluation

    def claims(self, results: Results) -> Iterator[Claim]:
        """With few labels HPT is best, and HPT-BN never beats it."""
        for condition in results.conditions:
            for other in ("Target", "Base", "HPT-BN"):
                yield from self.better(results, "HPT", other, condition)

    def figure(self, results: Results) -> Figure:
        """Each method at each number of labels."""
        return by_condition(results, "labels")

    def condition_text(self, condition: str) -> str:
        """`20 labels`, `10% of the labels`."""
        return share_text(condition, "labels")
