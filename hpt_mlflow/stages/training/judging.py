"""Judging a stage that starts from a model: which of its milestones is best, the parent among them."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from torch import nn

from hpt_mlflow.data.split import Split
from hpt_mlflow.data.statistics import ChannelStatistics
from hpt_mlflow.errors import HptError
from hpt_mlflow.evaluation.features import FeatureReader
from hpt_mlflow.evaluation.objectives import OBJECTIVES
from hpt_mlflow.evaluation.objectives.base import Judge, make_judge
from hpt_mlflow.settings import AdaptSettings, TrainingSettings
from hpt_mlflow.training.plan import Plan

log = logging.getLogger("hpt_mlflow")
# What all judgements of a training may cost, as a share of the images that pass through its networks.
SHARE = 0.03
# With fewer images, a judge sees too little, and a network soon knows them by heart.
FEW_IMAGES = 50
# Fewer examples tell nothing, however short the training is.
FEWEST_EXAMPLES = 100
# What auto tries, in this order: labels tell most, if there are any.
AUTOMATIC = ("knn", "consistency")


@dataclass(frozen=True)
class Judging:
    """A judge and the objective that it judges by."""

    objective: str
    judge: Judge

    def normalising_with(self, statistics: ChannelStatistics | None) -> Judging:
        """The same judge for a backbone whose images were normalised in another way; None for the same way."""
        reader = self.judge.reader
        return replace(
            self, judge=replace(self.judge, reader=replace(reader, statistics=statistics or reader.statistics))
        )

    def metrics(self, backbone: nn.Module) -> dict[str, float]:
        """The score of a backbone, by the name of its metric."""
        return {metric_name(self.objective): self.judge.score(backbone)}


@dataclass(frozen=True)
class JudgedMilestones:
    """Scores of the milestones, of which step 0 is the parent.

    Attributes:
        objective: what judged.
        scores: by step, ascending.
        noise: by how much scores of equally good backbones may well differ.
    """

    objective: str
    scores: Mapping[int, float]
    noise: float = 0.0

    @property
    def best(self) -> int:
        """The best step; the parent, unless another one has a score that is higher by more than the noise.

        Of milestones that are so much better than the parent, the last one whose score is lower than the highest by no
        more than the noise: the rest of the schedule, whose steps become smaller and smaller, makes most models better.
        """
        better = {step: score for step, score in self.scores.items() if score > self._enough}
        return _last_of_the_best(better, self.noise) if better else 0

    @property
    def best_after_parent(self) -> int:
        """The best step but for the parent."""
        return _last_of_the_best({step: score for step, score in self.scores.items() if step}, self.noise)

    @property
    def summary(self) -> str:
        """Whether the training helped, in a sentence."""
        parent, last = self.scores[0], max(self.scores)
        by = f"by {OBJECTIVES[self.objective].title}"
        if self.best == 0:
            sure = " by more than chance" if any(score > parent for score in self.scores.values()) else ""
            return f"Not better than its parent{sure}, {by}: {parent:.3f}, and {self.scores[last]:.3f} at step {last}."
        worse = max(step for step, score in self.scores.items() if not score > self._enough)
        better = f"from step {min(step for step in self.scores if step > worse)} on" if worse < last else "for a while"
        return (
            f"Better than its parent {better}, {by}; step {self.best} is taken: {self.scores[self.best]:.3f}, the "
            f"parent {parent:.3f}."
        )

    @property
    def _enough(self) -> float:
        """The score above which a milestone is better than the parent."""
        return self.scores[0] + self.noise


def _last_of_the_best(scores: Mapping[int, float], noise: float) -> int:
    """The last step whose score is below the highest by no more than the noise; scores that are NaN are lowest."""
    known = {step: -math.inf if math.isnan(score) else score for step, score in scores.items()}
    return max(step for step, score in known.items() if score >= max(known.values()) - noise)


def metric_name(objective: str) -> str:
    """The metric that a judge's scores are logged as."""
    return f"judge/{objective}"


def judged_milestones(
    objective: str, history: Iterable[tuple[int, Mapping[str, float]]], lost: Collection[int] = (), noise: float = 0.0
) -> JudgedMilestones:
    """The scores among the metrics of a run.

    Args:
        lost: milestones that could not be kept as models.
        noise: of the judge.
    """
    name = metric_name(objective)
    scores = {step: metrics[name] for step, metrics in history if name in metrics and step not in lost}
    return JudgedMilestones(objective, dict(sorted(scores.items())), noise)


def open_judge(
    settings: TrainingSettings, plan: Plan, passes: float, judgements: int, reader: FeatureReader, split: Split
) -> Judging | None:
    """The judge of a stage that starts from a model; None for other stages, or if the user or the images allow none.

    Args:
        passes: how often an image passes through the network in a step.
        judgements: how often it will judge.

    Raises:
        HptError: the images do not allow the judge that the user chose.
    """
    if not isinstance(settings, AdaptSettings) or settings.judge == "none":
        return None
    examples = max(FEWEST_EXAMPLES, round(SHARE * passes * plan.steps * plan.batch_size / judgements))
    labels = reader.images.dataset.labels
    problem = ""
    for objective in AUTOMATIC if settings.judge == "auto" else (settings.judge,):
        try:
            return Judging(objective, make_judge(objective, reader, split, labels, examples))
        except HptError as error:
            if settings.judge != "auto":
                raise error.about("judge") from error
            problem = error.problem
    log.warning("nothing judges whether this helps, and its last step is taken: %s", problem)
    return None
