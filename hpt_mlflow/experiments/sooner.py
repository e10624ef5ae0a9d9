"""How many times sooner HPT is as good as Target at its best."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from hpt_mlflow.experiments.claims import HELD, NOT_SHOWN, Claim, verdict
from hpt_mlflow.experiments.results import CONFIDENCE, BySteps, Results, mean_of
from hpt_mlflow.interval import Interval


@dataclass(frozen=True)
class Sooner:
    """How many times sooner one method reaches the best score of another one.

    Attributes:
        ratios: one per seed in which it is reached.
        at_first: in how many of these it is reached at the first milestone, so that the ratio might be higher.
    """

    ratios: Sequence[float]
    at_first: int

    @property
    def logarithm(self) -> Interval:
        """The mean of the ratios' logarithms."""
        return mean_of([math.log(ratio) for ratio in self.ratios])

    @property
    def mean(self) -> Interval:
        """The geometric mean, with the interval of the logarithms."""
        return Interval(*map(math.exp, self.logarithm))

    @property
    def all_sooner(self) -> bool:
        """Whether every ratio is above 1, in enough seeds to be certain (two-sided sign test)."""
        return all(ratio > 1 for ratio in self.ratios) and 2 * 0.5 ** len(self.ratios) < 1 - CONFIDENCE


def times_sooner(fast: Mapping[int, BySteps], slow: Mapping[int, BySteps]) -> Sooner:
    """How many times sooner `fast` reaches the best score of `slow`.

    For each seed this is the step of the best of `slow` over the first step at which `fast` is as good.
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


def sooner_claims(results: Results) -> Iterator[Claim]:
    """How much sooner HPT is as good as Target at its best; and whether Target has learned anything."""
    fast, slow = results.by_seed("HPT"), results.by_seed("Target")
    if not fast or not slow:
        return
    yield _claim(times_sooner(fast, slow), len(slow))
    idle = sum(first_best(curve) == min(curve) < max(curve) for curve in slow.values())
    if idle:
        yield Claim(f"Target is at its best at its first milestone in {idle} of {len(slow)} seeds")


def _claim(sooner: Sooner, seeds: int) -> Claim:
    reached = len(sooner.ratios)
    if not reached:
        return Claim(f"HPT reaches Target's best sooner: in none of {seeds} seeds", verdict=NOT_SHOWN)
    mean, in_all = sooner.mean, reached == seeds
    where = "" if in_all else f" in the {reached} of {seeds} seeds in which it does at all"
    if sooner.at_first:
        # A mean of ratios that might be higher is a lower bound, without an interval.
        holds = in_all and sooner.all_sooner
        text = (
            f"at least {_short(mean.value)} times sooner{where}: in {sooner.at_first} of {seeds} seeds it is there at "
            "its first milestone"
        )
        return Claim(f"HPT reaches Target's best {text}", Interval(mean.value), reached, HELD if holds else NOT_SHOWN)
    interval = f" [{_short(mean.low)}, {_short(mean.high)}]" if mean.is_known else ""
    text = f"{_short(mean.value)}{interval} times sooner{where}{'' if mean.is_known else ' (one seed)'}"
    shown = verdict(sooner.logarithm) if in_all else NOT_SHOWN
    return Claim(f"HPT reaches Target's best {text}", mean, reached, shown)


def _short(ratio: float) -> str:
    return f"{ratio:.1f}" if ratio >= 1 else f"{ratio:.2f}"
