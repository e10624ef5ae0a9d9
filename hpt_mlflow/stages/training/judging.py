"""Judging a stage that starts from a model: which of its milestones is best, the parent among them."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from hpt_mlflow.data.split import Split
from hpt_mlflow.data.statistics import ChannelStatistics
from hpt_mlflow.errors import HptError
from hpt_mlflow.evaluation.features import FeatureReader, feature_precision
from hpt_mlflow.evaluation.objectives import OBJECTIVES
from hpt_mlflow.evaluation.objectives.base import Judge, make_judge
from hpt_mlflow.settings import AdaptSettings, TrainingSettings
from hpt_mlflow.training.plan import Plan

log = logging.getLogger("hpt_mlflow")
# The images of all judgements of a training, as a share of those that pass through its networks. With what judges do to
# features, that is about 3% of the time (docs/adapting.md).
SHARE = 0.025
# With fewer images, a judge sees too little, and a network soon knows them by heart.
FEW_IMAGES = 50
# Fewer examples tell nothing, however short the training is.
FEWEST_EXAMPLES = 100
# What auto tries, in this order: labels tell most, if there are any.
AUTOMATIC = ("knn", "consistency")


def judging_precision(plan: Plan, device: torch.device) -> str:
    """Of the features that a training looks at: float32 if it trains in float32, else that of evaluations."""
    return feature_precision("float32" if plan.precision == "float32" else "auto", device)


@dataclass(frozen=True)
class Judging:
    """How milestones are judged.

    Attributes:
        objective: what the judge goes by.
        judge: whose scores say which milestone is best.
        check: by whose scores a milestone must not be worse than the parent; None if the objective needs no check.
    """

    objective: str
    judge: Judge
    check: Judge | None = None

    def normalising_with(self, statistics: ChannelStatistics | None) -> Judging:
        """The same judges for a backbone whose images were normalised in another way; None for the same way."""
        reader = self.judge.reader
        reader = replace(reader, statistics=statistics or reader.statistics)
        return replace(
            self, judge=replace(self.judge, reader=reader), check=self.check and replace(self.check, reader=reader)
        )

    def metrics(self, backbone: nn.Module) -> dict[str, float]:
        """The scores of a backbone, by the names of their metrics."""
        scores = {metric_name(self.objective): self.judge.score(backbone)}
        if self.check:
            scores[metric_name(OBJECTIVES[self.objective].checked_by)] = self.check.score(backbone)
        return scores

    def judged(
        self, history: Iterable[tuple[int, Mapping[str, float]]], lost: Collection[int] = ()
    ) -> JudgedMilestones:
        """The milestones by the metrics of a run.

        Args:
            lost: milestones that could not be kept as models.
        """
        kept = [(step, metrics) for step, metrics in history if step not in lost]
        refused = frozenset[int]()
        if self.check:
            checked = _scores(OBJECTIVES[self.objective].checked_by, kept)
            refused = worse_than_parent(checked, self.check.chance + 2 * self.check.noise)
        return JudgedMilestones(self.objective, _scores(self.objective, kept), self.judge.noise, refused)


@dataclass(frozen=True)
class JudgedMilestones:
    """Scores of the milestones, of which step 0 is the parent.

    Attributes:
        objective: what judged.
        scores: by step, ascending.
        noise: by how much scores of equally good backbones may well differ.
        refused: steps that the check does not let pass.
    """

    objective: str
    scores: Mapping[int, float]
    noise: float = 0.0
    refused: frozenset[int] = frozenset()

    @property
    def best(self) -> int:
        """The best step; the parent, unless another one has a score that is higher by more than the noise.

        Of milestones that are so much better than the parent, the last one whose score is lower than the highest by no
        more than the noise: the rest of the schedule, whose steps become smaller and smaller, makes most models better.
        """
        better = {step: self.scores[step] for step in self._better}
        return _last_of_the_best(better, self.noise) if better else 0

    @property
    def best_after_parent(self) -> int:
        """The best step but for the parent."""
        others = {step: score for step, score in self.scores.items() if step}
        passed = {step: score for step, score in others.items() if step not in self.refused}
        return _last_of_the_best(passed or others, self.noise)

    @property
    def summary(self) -> str:
        """Whether the training helped, in a sentence or two."""
        parent, last, better = self.scores[0], max(self.scores), self._better
        by = f"by {OBJECTIVES[self.objective].title}"
        if self.best == 0:
            sure = " by more than chance" if any(score > parent for score in self.scores.values()) else ""
            what = "Not better than its parent in every way" if self._objected else f"Not better than its parent{sure}"
            text = f"{what}, {by}: {parent:.3f}, and {self.scores[last]:.3f} at step {last}."
        else:
            worse = max(step for step in self.scores if step not in better)
            since = f"from step {min(step for step in better if step > worse)} on" if worse < last else "for a while"
            text = (
                f"Better than its parent {since}, {by}; step {self.best} is taken: {self.scores[self.best]:.3f}, the "
                f"parent {parent:.3f}."
            )
        if not self._objected:
            return text
        check = OBJECTIVES[OBJECTIVES[self.objective].checked_by].title
        return f"{text} By {check} it is worse at step {', '.join(map(str, self._objected))}."

    @property
    def _better(self) -> list[int]:
        """The steps that are better than the parent by more than the noise, and not refused."""
        return [step for step, score in self.scores.items() if score > self._enough and step not in self.refused]

    @property
    def _objected(self) -> list[int]:
        """The steps that would be better, were they not refused."""
        return [step for step, score in self.scores.items() if score > self._enough and step in self.refused]

    @property
    def _enough(self) -> float:
        """The score above which a milestone is better than the parent."""
        return self.scores[0] + self.noise


def worse_than_parent(scores: Mapping[int, float], telling: float) -> frozenset[int]:
    """The steps whose score is below that of the parent, step 0, or NaN.

    Args:
        telling: above this score the parent has something to lose. Below, it is chance that decides, as for turns of
            images that have no side that is up; then none is worse.
    """
    parent = scores.get(0, -math.inf)
    return frozenset(step for step, score in scores.items() if not score >= parent) if parent > telling else frozenset()


def _scores(objective: str, history: Iterable[tuple[int, Mapping[str, float]]]) -> dict[int, float]:
    """By step, ascending, among the metrics of a run."""
    name = metric_name(objective)
    scores = {step: metrics[name] for step, metrics in history if name in metrics}
    return dict(sorted(scores.items()))


def _last_of_the_best(scores: Mapping[int, float], noise: float) -> int:
    """The last step whose score is below the highest by no more than the noise; scores that are NaN are lowest."""
    known = {step: -math.inf if math.isnan(score) else score for step, score in scores.items()}
    return max(step for step, score in known.items() if score >= max(known.values()) - noise)


def metric_name(objective: str) -> str:
    """The metric that a judge's scores are logged as."""
    return f"judge/{objective}"


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
    examples = round(SHARE * passes * plan.steps * plan.batch_size / judgements)
    labels = reader.images.dataset.labels
    problem = ""
    for objective in AUTOMATIC if settings.judge == "auto" else (settings.judge,):
        check = OBJECTIVES[objective].checked_by
        # A judge and its check share what judging may cost.
        most = max(FEWEST_EXAMPLES, examples // (2 if check else 1))
        try:
            judges = [make_judge(name, reader, split, labels, most) for name in (objective, check) if name]
            return Judging(objective, *judges)
        except HptError as error:
            if settings.judge != "auto":
                raise error.about("judge") from error
            problem = error.problem
    log.warning("nothing judges whether this helps, and its last step is taken: %s", problem)
    return None
