"""The results of a study, and how certain their means and differences are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.stats import t as student  # type: ignore[import-untyped]

from hpt_mlflow.interval import Interval

CONFIDENCE = 0.95
ROUNDING = 1e-9
METRICS = {"accuracy": "test top-1", "auroc": "mean test AUROC"}
# Test scores by pretraining step.
BySteps = Mapping[int, float]


def mean_of(values: Sequence[float]) -> Interval:
    """The mean of independent values, one per seed, with its interval by Student's t; no interval for one value."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return Interval(mean)
    half = float(student.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return Interval(mean, mean - half, mean + half)


def is_sure(estimate: Interval) -> bool:
    """Whether 0 lies outside the interval, and seeds differ: if they agree exactly, the interval says nothing."""
    has_spread = estimate.high - estimate.low > ROUNDING * max(1.0, abs(estimate.value))
    return has_spread and estimate.excludes_zero


@dataclass(frozen=True)
class Results:
    """What a study has measured.

    Attributes:
        study: its name.
        metric: accuracy or auroc, in [0, 1], on test.
        scores: by method, condition and seed, the test score by pretraining step.
        untrained: by seed, the score of an untrained network.
        seconds: by method, how long its last training took, mean over conditions and seeds.
    """

    study: str
    metric: str
    scores: Mapping[tuple[str, str, int], BySteps]
    untrained: Mapping[int, float]
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def methods(self) -> list[str]:
        """In the order of the study."""
        return list(dict.fromkeys(method for method, _, _ in self.scores))

    @property
    def conditions(self) -> list[str]:
        """In the order of the study; an empty one if it has none."""
        return list(dict.fromkeys(condition for _, condition, _ in self.scores))

    def by_seed(self, method: str, condition: str = "") -> dict[int, BySteps]:
        """The scores of a method under a condition, by step, for each seed."""
        return {s: by_steps for (m, c, s), by_steps in self.scores.items() if (m, c) == (method, condition)}

    def last(self, method: str, condition: str = "") -> dict[int, float]:
        """The score after the last step, by seed."""
        return {seed: by_steps[max(by_steps)] for seed, by_steps in self.by_seed(method, condition).items()}

    def lost(self, method: str, condition: str, baseline: str) -> dict[int, float]:
        """By how much a method is better under a baseline condition than under another one, by seed."""
        best, here = self.last(method, baseline), self.last(method, condition)
        return {seed: best[seed] - here[seed] for seed in here if seed in best}

    def mean(self, method: str, condition: str = "") -> Interval | None:
        """Over the seeds, after the last step; None without results."""
        values = list(self.last(method, condition).values())
        return mean_of(values) if values else None


def difference(one: Mapping[int, float], other: Mapping[int, float]) -> Interval | None:
    """The mean of `one` minus `other`, seed by seed; None if no seed has both."""
    common = [seed for seed in one if seed in other]
    return mean_of([one[seed] - other[seed] for seed in common]) if common else None
