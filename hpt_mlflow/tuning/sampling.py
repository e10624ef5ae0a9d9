"""The Optuna sampler of the parameters that are not fixed when a trial is queued."""

from __future__ import annotations

import warnings

from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, RandomSampler, TPESampler

from hpt_mlflow.tuning.space import Space


def make_sampler(space: Space, seed: int, number: int) -> BaseSampler:
    """A sampler for one trial, seeded by its number, so that a restarted process does not repeat draws."""
    trial_seed = (seed * 1_000_003 + number) % 2**32
    if not space.with_strengths:
        return RandomSampler(seed=trial_seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        # Grouped, since a strength exists only if its augmentation is on; the constant liar keeps trials that run at
        # the same time apart (see Optuna's TPESampler).
        return TPESampler(seed=trial_seed, multivariate=True, group=True, constant_liar=True)
