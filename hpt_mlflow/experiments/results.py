"""The figures of an experiment, and how sure their means and differences are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student  # type: ignore[import-untyped]

CONFIDENCE = 0.95
ROUNDING = 1e-9
# Test figures by pretraining step.
BySteps = Mapping[int, float]


@dataclass(frozen=True)
class Estimate:
    """A mean over the seeds and its 95% interval, by Student's t; the interval is NaN for one seed alone."""

    mean: float
    low: float
    high: float
    count: int

    @property
    def is_sure(self) -> bool:
        """Whether 0 lies outside of an interval that says something."""
        return self.has_spread and (self.low > 0 or self.high < 0)

    @property
    def has_spread(self) -> bool:
        """Whether seeds differ; where they agree to the last image, the interval says nothing about how sure it is."""
        return self.high - self.low > ROUNDING * max(1.0, abs(self.mean))


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of independent values, one a seed, at least one."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return Estimate(mean, math.nan, math.nan, len(values))
    half = float(student.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return Estimate(mean, mean - half, mean + half, len(values))


@dataclass(frozen=True)
class Results:
    """What an experiment has found.

    Attributes:
        study: its name.
        metric: accuracy or auroc, in [0, 1], on test.
        figures: by method, condition and seed, the test figure by pretraining step.
        untrained: by seed, the figure of an untrained network.
    """

    study: str
    metric: str
    figures: Mapping[tuple[str, str, int], BySteps]
    untrained: Mapping[int, float]

    @property
    def methods(self) -> list[str]:
        """In the order of the experiment."""
        return list(dict.fromkeys(method for method, _, _ in self.figures))

    @property
    def conditions(self) -> list[str]:
        """In the order of the experiment; an empty one where it has none."""
        return list(dict.fromkeys(condition for _, condition, _ in self.figures))

    def by_seed(self, method: str, condition: str = "") -> dict[int, BySteps]:
        """The figures of a method under a condition, by step, of each seed."""
        return {s: by_steps for (m, c, s), by_steps in self.figures.items() if (m, c) == (method, condition)}

    def last(self, method: str, condition: str = "") -> dict[int, float]:
        """The figure after the last step, by seed."""
        return {seed: by_steps[max(by_steps)] for seed, by_steps in self.by_seed(method, condition).items()}

    def mean(self, method: str, condition: str = "") -> Estimate | None:
        """Over the seeds, after the last step; None where there is nothing."""
        values = list(self.last(method, condition).values())
        return estimate(values) if values else None


def difference(one: Mapping[int, float], other: Mapping[int, float]) -> Estimate | None:
    """The mean of one less the other, seed by seed; None where no seed has both."""
    common = [seed for seed in one if seed in other]
    return estimate([one[seed] - other[seed] for seed in common]) if common else None


@dataclass(frozen=True)
class Sooner:
    """How many times sooner one reaches the best figure that another one reaches at all.

    Attributes:
        ratios: one of each seed in which it is reached.
        at_first: in how many of these it is reached at the first milestone, so that the ratio might be higher.
    """

    ratios: Sequence[float]
    at_first: int

    @property
    def logarithm(self) -> Estimate:
        """The mean of the ratios' logarithms."""
        return estimate([math.log(ratio) for ratio in self.ratios])

    @property
    def mean(self) -> Estimate:
        """The geometric mean, as the mean and interval of the logarithms say."""
        found = self.logarithm
        return Estimate(math.exp(found.mean), math.exp(found.low), math.exp(found.high), found.count)

    @property
    def all_sooner(self) -> bool:
        """Whether every ratio is above 1, in so many seeds that it is sure (sign test, two-sided)."""
        return all(ratio > 1 for ratio in self.ratios) and 2 * 0.5 ** len(self.ratios) < 1 - CONFIDENCE


def times_sooner(fast: Mapping[int, BySteps], slow: Mapping[int, BySteps]) -> Sooner:
    """How many times sooner `fast` reaches the best figure that `slow` reaches at all.

    By seed it is the step of the best of `slow` over the first step at which `fast` is as good.
    """
    ratios, at_first = [], 0
    for seed, curve in slow.items():
        mine = fast.get(seed, {})
        reached = [step for step, value in mine.items() if value >= max(curve.values())]
        if reached:
            ratios.append(first_best(curve) / min(reached))
            at_first += min(reached) == min(mine)
    return Sooner(ratios, at_first)


def first_best(curve: BySteps) -> int:
    """The first step at which a curve is at its best."""
    best = max(curve.values())
    return min(step for step, value in curve.items() if value == best)
