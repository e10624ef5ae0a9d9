from __future__ import annotations

import math

import numpy as np
import pytest
from imagined import imagined
from scipy import stats

from hpt_mlflow.experiments.results import difference, is_sure, mean_of
from hpt_mlflow.experiments.sooner import Sooner, times_sooner
from hpt_mlflow.interval import Interval


@pytest.mark.parametrize("count", [2, 3, 7, 100])
def test_an_interval_is_that_of_student_s_t(count):
    values = list(np.random.default_rng(count).normal(0.6, 0.1, count))
    found = mean_of(values)
    low, high = stats.t.interval(0.95, count - 1, loc=np.mean(values), scale=stats.sem(values))
    assert found == pytest.approx((np.mean(values), low, high), rel=1e-12)


def test_an_interval_by_hand():
    # Of 1, 2 and 3: a standard deviation of 1, and 4.302653 / sqrt(3) on either side.
    found = mean_of([3, 1, 2])
    assert found == pytest.approx((2, 2 - 2.484138, 2 + 2.484138), abs=1e-6)
    # Of 0 and 2: a standard deviation of sqrt(2), and 12.706205 on either side.
    assert mean_of([0, 2]).high == pytest.approx(13.706205, abs=1e-6)


def test_one_value_has_no_interval():
    found = mean_of([0.25])
    assert found.value == 0.25
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert not is_sure(found)


@pytest.mark.parametrize(
    ("low", "high", "sure"),
    [(0.1, 0.3, True), (-0.3, -0.1, True), (-0.1, 0.3, False), (0.0, 0.3, False), (-0.3, 0.0, False)],
)
def test_a_difference_is_sure_where_0_lies_outside_of_its_interval(low, high, sure):
    assert is_sure(Interval((low + high) / 2, low, high)) is sure


def test_results_are_found_by_method_and_condition_in_their_order():
    found = imagined(
        "semi-supervised",
        {
            ("HPT", "20"): [{5: 0.9, 10: 0.3}, {10: 0.5, 5: 0.1}],
            ("Base", "20"): [0.1],
            ("HPT", "10"): [None, 0.7],
        },
    )
    assert found.methods == ["HPT", "Base"]
    assert found.conditions == ["20", "10"]
    assert found.by_seed("HPT", "20") == {0: {5: 0.9, 10: 0.3}, 1: {5: 0.1, 10: 0.5}}
    # After the last step, whatever the order of steps, and whatever is best.
    assert found.last("HPT", "20") == {0: 0.3, 1: 0.5}
    assert found.last("HPT", "10") == {1: 0.7}
    assert found.mean("HPT", "20") == mean_of([0.3, 0.5])
    assert found.last("HPT") == found.last("Base", "10") == {}
    assert found.mean("HPT") is found.mean("Target", "20") is None


def test_a_difference_is_paired():
    one, other = {0: 0.9, 1: 0.5, 2: 0.3}, {2: 0.2, 0: 0.8, 1: 0.4}
    found = difference(one, other)
    # Seeds differ far more than methods do, which are 0.1 apart in each seed.
    assert found == pytest.approx((0.1, 0.1, 0.1))
    assert difference(other, one).value == pytest.approx(-0.1)
    assert is_sure(difference(one | {2: 0.31}, other))
    assert is_sure(difference(other, one | {2: 0.31}))


@pytest.mark.parametrize("value", [0.5, -0.25, 0.0])
def test_seeds_that_agree_to_the_last_image_are_not_sure(value):
    found = mean_of([value] * 4)
    assert found == (value, value, value)
    assert not is_sure(found)


@pytest.mark.parametrize(
    "found",
    [mean_of([0.1] * 3), mean_of([-0.1] * 3), difference({0: 0.6, 1: 0.4}, {0: 0.5, 1: 0.3})],
    ids=["mean", "below", "difference"],
)
def test_seeds_that_agree_but_for_rounding_are_not_sure(found):
    assert not is_sure(found)


def test_a_difference_is_of_the_seeds_that_both_have():
    found = difference({0: 0.9, 1: 0.5, 3: 0.7}, {1: 0.4, 2: 0.0, 3: 0.4})
    assert found == mean_of([0.5 - 0.4, 0.7 - 0.4])
    assert difference({0: 0.9}, {0: 0.5, 1: 1.0}) == mean_of([0.9 - 0.5])
    assert difference({0: 0.9}, {1: 0.9}) is None
    assert difference({}, {}) is None


def test_how_many_times_sooner_by_hand():
    # The best is reached first at 1,000, though also later: 100 is ten times sooner, as is equal, not above.
    slow = {0: {2000: 0.9, 10: 0.5, 1000: 0.9}, 1: {1000: 0.7, 2000: 0.8}}
    fast = {0: {1000: 0.95, 100: 0.9, 10: 0.6}, 1: {100: 0.85, 1000: 0.6}}
    found = times_sooner(fast, slow)
    assert found.ratios == [10, 20]
    # The second seed has no milestone before it.
    assert found.at_first == 1
    mean = found.mean
    # 10 and 20 times, on the scale of logarithms.
    assert mean.value == pytest.approx(math.sqrt(200))
    half = 12.706205 * math.log(2) / 2
    assert (mean.low, mean.high) == pytest.approx((200**0.5 / math.exp(half), 200**0.5 * math.exp(half)), rel=1e-6)


def test_the_best_that_is_to_be_reached_may_come_before_the_last_step():
    assert times_sooner({0: {10: 0.7, 40: 0.9}}, {0: {20: 0.8, 40: 0.6}}) == Sooner([0.5], 0)


def test_seeds_that_do_not_reach_it_are_left_out():
    slow = {seed: {10: 0.1, 100: 0.9} for seed in range(4)}
    fast = {0: {10: 0.9}, 1: {10: 0.89, 100: 0.899}, 3: {10: 0.2, 50: 0.95}}
    assert times_sooner(fast, slow) == Sooner([10, 2], 1)


@pytest.mark.parametrize("fast", [{}, {0: {10: 0.1}}, {1: {10: 0.9}}])
def test_where_no_seed_reaches_it_there_is_no_ratio(fast):
    assert times_sooner(fast, {0: {10: 0.9}}) == Sooner([], 0)
