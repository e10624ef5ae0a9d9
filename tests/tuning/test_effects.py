from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from scipy import stats

from hpt_mlflow.augment.subset import AUGMENTATIONS, Strengths
from hpt_mlflow.interval import Interval
from hpt_mlflow.tuning.effects import common_step, main_effects
from hpt_mlflow.tuning.records import COMPLETE, FAILED, PRUNED, TrialRecord

GRID = [tuple(name for name, on in zip(AUGMENTATIONS, bits, strict=True) if on) for bits in product((0, 1), repeat=5)]
MAIN = {"crop": 0.12, "color": 0.06, "gray": -0.02, "blur": 0.0, "flip": 0.01}


def truth(subset):
    """A score with the effects MAIN."""
    on = dict.fromkeys(AUGMENTATIONS, -0.5) | dict.fromkeys(subset, 0.5)
    return 0.5 + sum(value * on[name] for name, value in MAIN.items())


def trials_of(subsets, noise=0.0, rng=None, step=4):
    errors = np.zeros(len(subsets)) if rng is None else rng.normal(0, noise, len(subsets))
    return [
        TrialRecord(i, subset, COMPLETE, {step: truth(subset) + error})
        for i, (subset, error) in enumerate(zip(subsets, errors, strict=True))
    ]


def mean_score(trials, *conditions):
    """Mean score at step 4 of the trials in which each named augmentation is on or off."""
    chosen = [t.scores[4] for t in trials if all((name in t.subset) == on for name, on in conditions)]
    return sum(chosen) / len(chosen)


def test_the_common_step_is_the_deepest_that_all_reached():
    trials = [TrialRecord(0, (), COMPLETE, {4: 1, 16: 1, 64: 1}), TrialRecord(1, (), PRUNED, {4: 1, 16: 1})]
    assert common_step(trials) == 16
    assert common_step([*trials, TrialRecord(2, (), FAILED), TrialRecord(3, (), FAILED, {4: 1})]) == 4


def test_there_is_no_common_step_without_one():
    assert common_step([]) == common_step([TrialRecord(0, (), FAILED)]) == 0
    assert common_step([TrialRecord(0, (), COMPLETE, {4: 1}), TrialRecord(1, (), COMPLETE, {8: 1})]) == 0


def test_on_all_subsets_effects_are_differences_of_means():
    trials = trials_of(GRID, 0.05, np.random.default_rng(0))
    main = main_effects(trials, 4, AUGMENTATIONS)
    assert list(main) == list(AUGMENTATIONS)
    for name, effect in main.items():
        assert effect.value == pytest.approx(mean_score(trials, (name, True)) - mean_score(trials, (name, False)))


def test_the_interval_of_one_augmentation_is_that_of_the_two_sample_t_test():
    rng = np.random.default_rng(2)
    on, off = rng.normal(0.6, 0.1, 7), rng.normal(0.5, 0.1, 4)
    trials = [TrialRecord(i, ("crop",), COMPLETE, {4: y}) for i, y in enumerate(on)]
    trials += [TrialRecord(9, (), COMPLETE, {4: y}) for y in off]
    expected = stats.ttest_ind(on, off).confidence_interval(0.95)
    (effect,) = main_effects(trials, 4, AUGMENTATIONS).values()
    assert effect == pytest.approx((on.mean() - off.mean(), *expected))


def test_intervals_cover_the_truth_as_often_as_they_promise():
    """1,000 searches of 24 trials, unbalanced: each of 5 effects is covered in 95%, give or take 4 errors."""
    rng = np.random.default_rng(3)
    subsets = [GRID[i] for i in [*range(3, 25), 0, 31]]
    searches = 1000
    covered = dict.fromkeys(MAIN, 0)
    for _ in range(searches):
        trials = trials_of(subsets, 0.02, rng)
        found = main_effects(trials, 4, AUGMENTATIONS)
        assert set(found) == set(MAIN)
        for name, (_, low, high) in found.items():
            covered[name] += low <= MAIN[name] <= high
    bound = 4 * math.sqrt(0.95 * 0.05 / searches)
    assert [count / searches for count in covered.values()] == pytest.approx([0.95] * 5, abs=bound)


def test_an_unbalanced_search_still_tells_the_effects_apart():
    """Crop is on more often where colour is on, so that plain differences of means would mix them up."""
    subsets = GRID + [subset for subset in GRID if {"crop", "color"} <= set(subset)] * 3
    trials = trials_of(subsets)
    assert mean_score(trials, ("crop", True)) - mean_score(trials, ("crop", False)) > 0.135
    main = main_effects(trials, 4, AUGMENTATIONS)
    assert {name: effect.value for name, effect in main.items()} == pytest.approx(MAIN)


@pytest.mark.parametrize("count", [12, 16])
def test_intervals_are_those_of_the_normal_equations(count):
    rng = np.random.default_rng(4)
    trials = trials_of([GRID[i] for i in rng.permutation(32)[:count]], 0.02, rng)
    found = main_effects(trials, 4, AUGMENTATIONS)
    # By hand: dummies of 0 and 1 have the same slopes, and the normal equations give their variance.
    x = np.array([[1.0, *(name in t.subset for name in AUGMENTATIONS)] for t in trials])
    y = np.array([t.scores[4] for t in trials])
    slopes, squares, *_ = np.linalg.lstsq(x, y, rcond=None)
    half = stats.t.ppf(0.975, count - 6) * np.sqrt(squares[0] / (count - 6) * np.diag(np.linalg.inv(x.T @ x)))
    for i, name in enumerate(AUGMENTATIONS, start=1):
        assert found[name] == pytest.approx((slopes[i], slopes[i] - half[i], slopes[i] + half[i]))


def test_augmentations_that_never_vary_are_left_out():
    subsets = [subset for subset in GRID if "crop" in subset and "flip" not in subset]
    trials = trials_of(subsets)
    assert set(main_effects(trials, 4, AUGMENTATIONS)) == {"color", "gray", "blur"}


def test_augmentations_that_nothing_tells_apart_are_left_out():
    subsets = [subset for subset in GRID if ("crop" in subset) == ("color" in subset)]
    for trials in (trials_of(subsets), trials_of(subsets * 2)):
        found = main_effects(trials, 4, AUGMENTATIONS)
        assert set(found) == {"gray", "blur", "flip"}
        assert found["flip"].value == pytest.approx(MAIN["flip"])
    # Two columns that are one column take one degree of freedom.
    noisy = trials_of(subsets[:10], 0.05, np.random.default_rng(6))
    without = main_effects(noisy, 4, ("crop", "gray", "blur", "flip"))
    assert tuple(main_effects(noisy, 4, AUGMENTATIONS)["gray"]) == pytest.approx(tuple(without["gray"]))


def test_without_residuals_there_is_no_interval():
    trials = trials_of([(), *((name,) for name in AUGMENTATIONS)])
    for effect in main_effects(trials, 4, AUGMENTATIONS).values():
        assert math.isfinite(effect.value)
        assert math.isnan(effect.low)
        assert math.isnan(effect.high)


def test_trials_without_subset_or_score_do_not_count():
    trials = trials_of(GRID, 0.05, np.random.default_rng(5))
    others = [
        TrialRecord(40, None, FAILED, {4: 9.0}),
        TrialRecord(41, (), FAILED),
        TrialRecord(42, (), COMPLETE, {8: 9}),
    ]
    assert main_effects([*trials, *others], 4, AUGMENTATIONS) == main_effects(trials, 4, AUGMENTATIONS)


def test_scores_after_the_step_do_not_count():
    trials = trials_of(GRID, 0.05, np.random.default_rng(7))
    longer = [replace(trial, scores={**trial.scores, 16: 9.0 * trial.number}) for trial in trials]
    assert main_effects(longer, 4, AUGMENTATIONS) == main_effects(trials, 4, AUGMENTATIONS)


def test_two_trials_of_one_subset_both_count():
    one, other = (TrialRecord(i, ("crop",), COMPLETE, {4: y}, Strengths(hue=y)) for i, y in ((1, 0.1), (2, 0.3)))
    (effect,) = main_effects([one, other, TrialRecord(0, (), COMPLETE, {4: 0.0})], 4, AUGMENTATIONS).values()
    assert effect.value == pytest.approx(0.2)
    assert effect.low < 0.2 < effect.high


@pytest.mark.parametrize("trials", [[], trials_of([()]), trials_of([("crop",)] * 3)])
def test_without_anything_that_varies_there_are_no_effects(trials):
    assert main_effects(trials, 4, AUGMENTATIONS) == {}


def test_only_the_augmentations_that_are_asked_for_are_looked_at():
    assert list(main_effects(trials_of(GRID), 4, ("flip", "crop"))) == ["flip", "crop"]


@pytest.mark.parametrize(
    ("effect", "text", "sure"),
    [
        (Interval(0.1234, 0.101, 0.145), "+0.123 [+0.101, +0.145]", True),
        (Interval(-0.1, -0.3, -0.01), "-0.100 [-0.300, -0.010]", True),
        (Interval(0.1, -0.01, 0.21), "+0.100 [-0.010, +0.210]", False),
        (Interval(0.1, math.nan, math.nan), "+0.100", False),
    ],
)
def test_an_effect_says_how_sure_it_is(effect, text, sure):
    assert effect.signed() == text
    assert effect.excludes_zero is sure
