r"""The effect of each augmentation on the score, by least squares over all trials.

The trials are a factorial design: each augmentation is a factor that is on or off. The score of a trial is taken to be

    y = m + sum_i b_i x_i + sum_{i<j} b_ij x_i x_j + noise,    x_i = +1/2 where augmentation i is on, -1/2 where off

With this coding the coefficients are differences of scores: b_i is on minus off, averaged over the others being on and
off in equal parts, and b_ij is the effect of i with j on, minus its effect with j off, which is symmetric in i and j.
If all subsets are equally frequent they are plain differences of means (Box, Hunter and Hunter, Statistics for
Experimenters, 2nd edition 2005, chapter 5, whose interaction is half of this b_ij); a search tries some subsets more
often than others, and least squares accounts for that. Intervals are the usual ones of a linear model (Draper and
Smith, Applied Regression Analysis, 3rd edition 1998, chapter 5):

    b +- t(97.5%, n - r) sqrt(s^2 [(X'X)^+]_bb),    s^2 = |y - Xb|^2 / (n - r),    r the rank of X, n trials

They hold if the noise has the same variance everywhere and the model is right: interactions of three augmentations
count as noise, and so do strengths that differ between trials. All trials share seed, images and judge: the intervals
do not cover what another seed or other validation images would change. All scores are compared at the same step of
training; the deepest that all trials reached is before any pruning, so that bad subsets are not left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np
from scipy.special import stdtrit  # type: ignore[import-untyped]

from hpt_mlflow.interval import Interval
from hpt_mlflow.tuning.records import RUNNING, TrialRecord

LEVEL = 0.95
# Deviations below this size are rounding errors: the columns of X hold 1, 1/2 and 1/4.
ROUNDING = 1e-9


def common_step(trials: Sequence[TrialRecord]) -> int:
    """The deepest rung, in steps, at which all trials with any score have one, except running trials; 0 for none."""
    scored = [set(trial.scores) for trial in trials if trial.scores and trial.state != RUNNING]
    return max(set.intersection(*scored), default=0) if scored else 0


def scores_at(trials: Sequence[TrialRecord], step: int) -> list[TrialRecord]:
    """The trials that have a score at the step, however they ended."""
    return [trial for trial in trials if step in trial.scores]


def main_effects(trials: Sequence[TrialRecord], step: int, augmentations: Sequence[str]) -> dict[str, Interval]:
    """By how much the score changes when an augmentation is on instead of off, the others on and off in equal parts.

    Args:
        trials: those without a score at the step or without a subset are left out; all trials of a subset count.
        step: of training, at which scores are compared.
        augmentations: to report on; those that never vary or cannot be told apart are left out.
    """
    return {names[0]: effect for names, effect in _fit(trials, step, augmentations).items() if len(names) == 1}


def interactions(
    trials: Sequence[TrialRecord], step: int, augmentations: Sequence[str]
) -> dict[tuple[str, str], Interval]:
    """By how much the effect of one augmentation differs when another is on rather than off.

    Pairs are in the order of `augmentations`. Empty unless there are more trials than coefficients, of which five
    augmentations have 16.

    Args:
        trials, step, augmentations: as in `main_effects`.
    """
    effects = _fit(trials, step, augmentations)
    return {(names[0], names[1]): effect for names, effect in effects.items() if len(names) == 2}


def _fit(trials: Sequence[TrialRecord], step: int, augmentations: Sequence[str]) -> dict[tuple[str, ...], Interval]:
    """The effects that the trials determine, by one augmentation or by two.

    An interaction that is not determined, such as that of two augmentations that were never on together, is left out of
    the model, as if it were 0; otherwise the main effects of both would be undetermined, too.
    """
    used = [trial for trial in scores_at(trials, step) if trial.subset is not None]
    on = {name: np.array([name in (trial.subset or ()) for trial in used]) for name in augmentations}
    factors = {name: values - 0.5 for name, values in on.items() if values.any() and not values.all()}
    if not factors:
        return {}
    y = np.array([trial.scores[step] for trial in used], dtype=np.float64)
    terms: list[tuple[str, ...]] = [(name,) for name in factors]
    pairs: list[tuple[str, ...]] = list(combinations(factors, 2))
    if len(used) > 1 + len(terms) + len(pairs):
        known = _determined(_design(factors, terms + pairs))[1 + len(terms) :]
        terms += [pair for pair, is_known in zip(pairs, known, strict=True) if is_known]

    x = _design(factors, terms)
    inverse = np.linalg.pinv(x)
    coefficients = inverse @ y
    freedom = len(y) - np.linalg.matrix_rank(x)
    half = np.full(len(coefficients), math.nan)
    if freedom > 0:
        variance = np.sum((y - x @ coefficients) ** 2) / freedom
        # pinv(X) pinv(X)' is the pseudo-inverse of X'X; the row sums of squares are its diagonal.
        half = stdtrit(freedom, (1 + LEVEL) / 2) * np.sqrt(variance * np.sum(inverse**2, axis=1))
    return {
        term: Interval(float(value), float(value - width), float(value + width))
        for term, value, width, known in zip(terms, coefficients[1:], half[1:], _determined(x)[1:], strict=True)
        if known
    }


def _design(factors: dict[str, np.ndarray], terms: Sequence[tuple[str, ...]]) -> np.ndarray:
    """The matrix X: (trials, 1 + terms), a column of ones and the product of each term's factors."""
    columns = [np.prod([factors[name] for name in term], axis=0) for term in terms]
    return np.stack([np.ones(len(columns[0])), *columns], axis=1)


def _determined(x: np.ndarray) -> np.ndarray:
    """Which coefficients are equal in all least-squares solutions: the null space of X has no part in them.

    Args:
        x: (trials, coefficients).
    """
    onto_rows = np.linalg.pinv(x) @ x
    return np.abs(np.diag(onto_rows) - 1) < ROUNDING
