r"""The effect of each augmentation on the score, by least squares over all trials.

The trials are a factorial design: each augmentation is a factor that is on or off. The score of a trial is taken to be

    y = m + sum_i b_i x_i + noise,    x_i = +1/2 where augmentation i is on, -1/2 where off

With this coding b_i is on minus off, averaged over the others being on and off in equal parts. If all subsets are
equally frequent it is the plain difference of means (Box, Hunter and Hunter, Statistics for Experimenters, 2nd edition
2005, chapter 5); a search tries some subsets more often than others, and least squares accounts for that. Intervals are
the usual ones of a linear model (Draper and Smith, Applied Regression Analysis, 3rd edition 1998, chapter 5):

    b +- t(97.5%, n - r) sqrt(s^2 [(X'X)^+]_bb),    s^2 = |y - Xb|^2 / (n - r),    r the rank of X, n trials

They hold if the noise has the same variance everywhere and the model is right: interactions of augmentations count as
noise, and so do strengths that differ between trials. All trials share seed, images and judge: the intervals do not
cover what another seed or other validation images would change. All scores are compared at the same step of training;
the deepest that all trials reached is before any pruning, so that bad subsets are not left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit  # type: ignore[import-untyped]

from hpt_mlflow.interval import Interval
from hpt_mlflow.tuning.records import RUNNING, TrialRecord

LEVEL = 0.95
# Deviations below this size are rounding errors: the columns of X hold 1 and 1/2.
ROUNDING = 1e-9


def common_step(trials: Sequence[TrialRecord]) -> int:
    """The deepest rung, in steps, at which all trials with any score have one, except running trials; 0 for none."""
    scored = [set(trial.scores) for trial in trials if trial.scores and trial.state != RUNNING]
    return max(set.intersection(*scored), default=0) if scored else 0


def main_effects(trials: Sequence[TrialRecord], step: int, augmentations: Sequence[str]) -> dict[str, Interval]:
    """By how much the score changes when an augmentation is on instead of off, the others on and off in equal parts.

    Args:
        trials: those without a score at the step or without a subset are left out; all trials of a subset count.
        step: of training, at which scores are compared.
        augmentations: to report on; those that never vary or cannot be told apart are left out.
    """
    used = [(trial.subset, trial.scores[step]) for trial in trials if step in trial.scores and trial.subset is not None]
    on = {name: np.array([name in subset for subset, _ in used]) for name in augmentations}
    factors = {name: values - 0.5 for name, values in on.items() if values.any() and not values.all()}
    if not factors:
        return {}
    y = np.array([score for _, score in used], dtype=np.float64)
    x = np.stack([np.ones(len(y)), *factors.values()], axis=1)
    inverse = np.linalg.pinv(x)
    coefficients = inverse @ y
    freedom = len(y) - np.linalg.matrix_rank(x)
    half = np.full(len(coefficients), math.nan)
    if freedom > 0:
        variance = np.sum((y - x @ coefficients) ** 2) / freedom
        # pinv(X) pinv(X)' is the pseudo-inverse of X'X; the row sums of squares are its diagonal.
        half = stdtrit(freedom, (1 + LEVEL) / 2) * np.sqrt(variance * np.sum(inverse**2, axis=1))
    # The null space of X has no part in a coefficient that is the same in all least-squares solutions.
    determined = np.abs(np.diag(inverse @ x) - 1) < ROUNDING
    return {
        name: Interval(float(value), float(value - width), float(value + width))
        for name, value, width, known in zip(factors, coefficients[1:], half[1:], determined[1:], strict=True)
        if known
    }
