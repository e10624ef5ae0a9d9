"""Who chooses what a trial does not have fixed: Optuna's samplers."""

from __future__ import annotations

import warnings

from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, RandomSampler, TPESampler

from hpt_mlflow.tuning.space import Space


def make_sampler(space: Space, seed: int, number: int) -> BaseSampler:
    """A sampler for one trial; seeded by its number, so that a worker that starts anew does not repeat draws."""
    seed = (seed * 1_000_003 + number) % 2**32
    if not space.with_strengths:
        return RandomSampler(seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        # Grouped, since a strength is there only where its augmentation is on; the constant liar keeps workers apart
        # (Optuna's TPESampler).
        return TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)
