"""A claim: what is compared, by how much it differs, and whether the paper's claim held here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hpt_mlflow.experiments.results import difference, is_sure
from hpt_mlflow.interval import Interval

HELD, NOT_SHOWN, OPPOSITE = "held", "not shown", "the opposite"


@dataclass(frozen=True)
class Claim:
    """A claim of the paper, or a comparison behind one; `str` makes it a sentence.

    Attributes:
        text: what is compared and the numbers, without the verdict.
        estimate: the number that the verdict is about, in [-1, 1] for differences; None if there is none.
        seeds: that the estimate is from.
        verdict: HELD, NOT_SHOWN or OPPOSITE; empty if the paper claims nothing here.
    """

    text: str
    estimate: Interval | None = None
    seeds: int = 0
    verdict: str = ""

    def __str__(self) -> str:
        return f"{self.text}, {self.verdict}." if self.verdict else f"{self.text}."


def verdict(estimate: Interval) -> str:
    """Whether something that the paper says is above 0 is."""
    if not is_sure(estimate):
        return NOT_SHOWN
    return HELD if estimate.value > 0 else OPPOSITE


def compare(text: str, one: Mapping[int, float], other: Mapping[int, float], is_claimed: bool = True) -> list[Claim]:
    """The mean of `one` minus `other`, seed by seed, in points of percent; empty if no seed has both.

    Args:
        text: what is compared.
        one, other: values in [0, 1] by seed.
        is_claimed: whether the paper claims that the difference is above 0.
    """
    estimate = difference(one, other)
    if estimate is None:
        return []
    seeds = len(one.keys() & other.keys())
    return [Claim(f"{text}: {_points(estimate)} points", estimate, seeds, verdict(estimate) if is_claimed else "")]


def _points(estimate: Interval) -> str:
    # Adding 0.0 turns -0.0 into 0.0.
    value, low, high = (f"{round(100 * number, 1) + 0.0:+.1f}" for number in estimate)
    return f"{value} [{low}, {high}]" if estimate.is_known else f"{value} (one seed)"
