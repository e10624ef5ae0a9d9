from __future__ import annotations

import math

import pytest

from hpt_mlflow.tuning.records import COMPLETE, FAILED, PRUNED, RUNNING, WAITING, TrialRecord, best_trial


def trial(number, scores=None, state=COMPLETE):
    return TrialRecord(number, ("crop",), state, scores or {})


def test_a_trial_is_named_by_its_subset():
    assert TrialRecord(0, ("crop", "flip"), COMPLETE).name == "crop,flip"
    assert TrialRecord(0, (), COMPLETE).name == "none"
    assert TrialRecord(0, None, WAITING).name == "?"


def test_the_score_is_the_one_after_the_most_steps():
    found = trial(0, {64: 0.5, 4: 0.9, 16: 0.7})
    assert found.reached == 64
    assert found.score == 0.5


def test_without_a_score_nothing_was_reached():
    assert trial(0).reached == 0
    assert math.isnan(trial(0).score)


def test_strengths_are_those_of_the_paper_unless_told():
    assert trial(0).strengths.hue == 0.4


@pytest.mark.parametrize(("maximise", "number"), [(True, 1), (False, 0)])
def test_the_best_is_the_largest_or_the_smallest(maximise, number):
    assert best_trial([trial(0, {4: 0.1}), trial(1, {4: 0.3}), trial(2, {4: 0.2})], maximise).number == number


@pytest.mark.parametrize(("maximise", "pruned"), [(True, 0.9), (False, 0.0)])
def test_a_trial_trained_longer_beats_any_score_of_a_shorter_one(maximise, pruned):
    trials = [trial(0, {4: pruned}, PRUNED), trial(1, {4: 0.5, 16: 0.5})]
    assert best_trial(trials, maximise).number == 1


def test_a_pruned_trial_may_be_the_best_where_none_is_complete():
    trials = [trial(0, {4: 0.2}, PRUNED), trial(1, {4: 0.3}, PRUNED), trial(2, state=WAITING)]
    assert best_trial(trials, maximise=True).number == 1


@pytest.mark.parametrize("state", [FAILED, RUNNING])
def test_a_trial_that_failed_or_runs_is_not_the_best(state):
    trials = [trial(0, {4: 0.9, 16: 0.9}, state), trial(1, {4: 0.1})]
    assert best_trial(trials, maximise=True).number == 1


@pytest.mark.parametrize("maximise", [True, False])
def test_of_two_equals_the_earlier_is_the_best(maximise):
    trials = [trial(5, {4: 0.5}), trial(2, {4: 0.5}), trial(3, {4: 0.5})]
    assert best_trial(trials, maximise).number == 2


def test_without_a_score_there_is_no_best():
    assert best_trial([], maximise=True) is None
    assert best_trial([trial(0), trial(1, state=FAILED)], maximise=True) is None
