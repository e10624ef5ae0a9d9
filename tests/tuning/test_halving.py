from __future__ import annotations

import math
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import optuna
import pytest
from optuna.pruners import NopPruner
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

from hpt_mlflow.augment.subset import AUGMENTATIONS
from hpt_mlflow.tuning.halving import Halving
from hpt_mlflow.tuning.records import COMPLETE, PRUNED
from hpt_mlflow.tuning.search import MOST_ATTEMPTS, SharedSearch
from hpt_mlflow.tuning.space import Space
from hpt_mlflow.tuning.storage import open_storage
from hpt_mlflow.tuning.trials import AGAIN, ATTEMPT, QUEUED_TWICE, REASON, STEPS, TARGET, place_of

SPACE = Space(AUGMENTATIONS)
# Of 32, they let 8, 2 and one go on.
BY_FOURS = Halving((3, 12, 48, 96), 4)
# Of 8, they let 4 and 2 go on.
BY_TWOS = Halving((1, 2, 4), 2)


def made(trials, halving=BY_TWOS, maximise=True, storage=None):
    """A search with its trials queued."""
    search = SharedSearch(storage or InMemoryStorage(), "s", SPACE, NopPruner(), 0, halving)
    search.create({}, maximise)
    search.fill(SPACE.queue(trials, seed=0))
    return search


def train(search, trial, score):
    """Train as a worker does, from rung to rung; gives way after each.

    Args:
        score: of a place after so many steps; NaN makes it fail.
    """
    rungs = search.halving.rungs
    for step, later in zip(rungs, (*rungs[1:], None), strict=True):
        found = score(place_of(trial), step)
        trial.set_user_attr(STEPS, step)
        trial.report(found, step)
        if step == search.target(trial):
            search.end(trial, TrialState.PRUNED if later else TrialState.COMPLETE, found)
            return
        yield


def finish(search, trial, score):
    """Train a trial to its end; `score` is a number, or as in `train`."""
    for _ in train(search, trial, score if callable(score) else lambda place, step: score):
        pass


def work_off(search, score, workers=1, seed=0, interrupt=False):
    """Let workers and a leader take turns as they are drawn, until nothing is left."""
    turns, busy = random.Random(seed), {}
    while True:
        worker = turns.randrange(workers + (workers > 1))
        if worker == workers:
            search.promote()
        elif worker not in busy:
            trial = search.claim(f"worker {worker}")
            if trial:
                busy[worker] = trial, train(search, trial, score)
            elif not busy:
                return
        elif interrupt and turns.random() < 0.2:
            assert search.give_up(busy.pop(worker)[0], "interrupted", count=False)
        elif next(busy[worker][1], "ended") == "ended":
            del busy[worker]


def trained(search, *states):
    """Place and target of all that was trained to its end, or failed for good; what was done twice is there twice."""
    ended = [trial for trial in search.trials(*states) if trial.state.is_finished() and AGAIN not in trial.user_attrs]
    kept = [trial for trial in ended if trial.user_attrs.get(REASON) != QUEUED_TWICE]
    return sorted(((place_of(trial), search.target(trial)) for trial in kept), key=str)


def waiting(search):
    """Place and target of what waits, in the order in which it is taken."""
    return [(place_of(trial), search.target(trial)) for trial in search.trials(TrialState.WAITING)]


def sorted_out(places, score, halving=BY_FOURS, maximise=True):
    """What must be trained: at each rung, all that come there are sorted, and the first of them go on.

    One that fails is as if it had never been there, but for what it has trained.
    """
    found, failed = set(), set()
    while True:
        remaining = [place for place in places if place not in failed]
        pairs = _one_after_another(remaining, len(places), score, halving, maximise)
        broken = {(step, place) for place, step in pairs if math.isnan(score(place, step))}
        if not broken:
            return sorted(found | pairs, key=str)
        first = min(step for step, _ in broken)
        found |= {(place, step) for place, step in pairs if step <= first}
        failed |= {place for step, place in broken if step == first}


def _one_after_another(places, trials, score, halving, maximise):
    pairs, there = set(), places
    for level, step in enumerate(halving.rungs):
        go_on = max(1, trials // halving.reduction ** (level + 1)) if step < halving.rungs[-1] else 0
        # But for the first rung, nobody stops where all that come go on.
        if level == 0 or go_on < len(there):
            pairs |= {(place, step) for place in there}
        best = sorted(there, key=lambda place, step=step: score(place, step), reverse=maximise)[:go_on]
        # In the order of their numbers, as sorting leaves equals in theirs.
        there = [place for place in places if place in best]
    return pairs


def table(seed, failing=0.0, among=1000):
    """Scores that are drawn, each of so many values; some make a trial fail."""
    drawn = random.Random(seed)
    places = range(32)
    of_all = {
        (place, step): math.nan if drawn.random() < failing else drawn.randrange(among) / among
        for place in places
        for step in BY_FOURS.rungs
    }
    return lambda place, step: of_all[place, step]


# Who goes on


@pytest.mark.parametrize(("maximise", "sign"), [(True, 1), (False, -1)])
def test_as_worked_out_by_hand(maximise, sign):
    scores = {
        1: [0.1, 0.8, 0.3, 0.7, 0.6, 0.2, 0.9, 0.4],
        # The best four of all; what the others would reach here does not count.
        2: [1.0, 0.5, 1.0, 0.9, 0.8, 1.0, 0.3, 1.0],
        4: [1.0, 1.0, 1.0, 0.2, 0.4, 1.0, 1.0, 1.0],
    }
    search = made(8, maximise=maximise)
    work_off(search, lambda place, step: sign * scores[step][place])
    by_target = {target: [place for place, at in trained(search) if at == target] for target in (1, 2, 4)}
    assert by_target == {1: [0, 1, 2, 3, 4, 5, 6, 7], 2: [1, 3, 4, 6], 4: [3, 4]}
    assert {trial.state for trial in search.trials()} == {TrialState.COMPLETE, TrialState.PRUNED}
    assert [place for place, _ in trained(search, TrialState.COMPLETE)] == [3, 4]
    records = search.records()
    assert [record.reached for record in records if record.state == COMPLETE] == [4, 4]
    assert sorted(record.reached for record in records if record.state == PRUNED) == [1, 1, 1, 1, 2, 2]


@pytest.mark.parametrize("workers", [1, 3])
def test_all_subsets_take_an_eighth_of_the_steps(workers):
    search = made(32, BY_FOURS)
    score = table(seed=0)
    work_off(search, score, workers)
    assert search.spent_steps() == 32 * 96 / 8
    at = [target for _, target in trained(search)]
    assert [at.count(rung) for rung in BY_FOURS.rungs] == [32, 8, 2, 1]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("workers", [1, 2, 5, 40])
@pytest.mark.parametrize("maximise", [True, False])
def test_the_same_go_on_whatever_the_number_and_the_order_of_workers(workers, seed, maximise):
    score = table(seed)
    search = made(32, BY_FOURS, maximise)
    work_off(search, score, workers, seed)
    assert trained(search) == sorted_out(range(32), score, maximise=maximise)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("later_is", ["better", "worse", "the same"])
def test_to_come_early_or_late_is_no_advantage(later_is, seed):
    known = {}

    def score(place, step):
        sign = {"better": 1, "worse": -1, "the same": 0}[later_is]
        return known.setdefault((place, step), sign * len(known) / 1000)

    search = made(32, BY_FOURS)
    work_off(search, score, workers=6, seed=seed)
    assert trained(search) == sorted_out(range(32), lambda place, step: known.get((place, step), -1.0))


@pytest.mark.parametrize("trials", [1, 2, 3, 5, 8, 15, 16, 31])
@pytest.mark.parametrize("halving", [BY_TWOS, BY_FOURS, Halving((1, 3, 9, 40), 3), Halving((5,), 4)])
def test_any_number_of_trials(trials, halving):
    def score(place, step):
        return (place * 7 + step) % 13 / 13

    search = made(trials, halving)
    work_off(search, score, workers=3, seed=trials)
    assert trained(search) == sorted_out(range(trials), score, halving)


@pytest.mark.parametrize("maximise", [True, False])
@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5, 6, 7], [7, 6, 5, 4, 3, 2, 1, 0], [3, 7, 1, 5, 0, 2, 6, 4]])
def test_of_equal_scores_the_earlier_number_goes_on(order, maximise):
    search = made(8, maximise=maximise)
    first = [search.claim("me") for _ in range(8)]
    for place in order:
        finish(search, first[place], 0.5)
    work_off(search, lambda place, step: 0.5)
    assert [pair for pair in trained(search) if pair[1] > 1] == [(0, 2), (0, 4), (1, 2), (1, 4), (2, 2), (3, 2)]


def test_of_equal_scores_one_that_was_interrupted_keeps_its_number():
    search = made(2)
    search.give_up(search.claim("me"), "interrupted", count=False)
    work_off(search, lambda place, step: 0.5)
    assert trained(search, TrialState.COMPLETE) == [(0, 4)]


def test_one_that_is_alone_at_two_rungs_skips_the_first():
    search = made(8, BY_FOURS)
    work_off(search, lambda place, step: place / 8)
    assert [pair for pair in trained(search) if pair[1] > 3] == [(6, 12), (7, 12), (7, 96)]
    (whole,) = search.trials(TrialState.COMPLETE)
    assert list(whole.intermediate_values) == [3, 12, 48, 96]


def test_without_halving_nobody_goes_on():
    search = replace(made(4), halving=None)
    finished = [search.claim("me") for _ in range(4)]
    for trial in finished:
        assert search.target(trial) is None
        search.end(trial, TrialState.PRUNED, 0.5)
    assert search.promote() == 0
    assert search.claim("me") is None


# When


def test_nobody_goes_on_before_it_is_certain():
    search = made(8)
    first = [search.claim("me") for _ in range(8)]
    promoted = []
    for trial, score in zip(first, (0.1, 0.2, 0.3, 0.4, 0.8, 0.7, 0.6, 0.5), strict=True):
        finish(search, trial, score)
        search.promote()
        promoted.append([place for place, _ in waiting(search)])
    # Four go on: of five that are known, the best one does even if the other three are better.
    assert promoted == [[], [], [], [], [4], [4, 5], [4, 5, 6], [4, 5, 6, 7]]
    assert search.promote() == 0


def test_nobody_goes_on_from_a_later_rung_while_some_are_still_to_come_to_it():
    search = made(8)
    first = [search.claim("me") for _ in range(8)]
    for trial in first[:6]:
        finish(search, trial, 0.5)
    # Two are certain of four; they alone have come to the second rung, from where two are to go on.
    assert search.promote() == 2
    for _ in range(2):
        finish(search, search.claim("me"), 0.5)
    assert search.promote() == 0
    for trial in first[6:]:
        finish(search, trial, 0.9)
    assert search.promote() == 2
    assert waiting(search) == [(6, 2), (7, 2)]
    finish(search, search.claim("me"), 0.9)
    # One is still to come there, so one is certain.
    assert search.promote() == 1
    assert waiting(search) == [(7, 2), (6, 4)]


def test_who_waits_or_runs_counts_as_one_that_may_be_better():
    search = made(4)
    first = [search.claim("me") for _ in range(3)]
    for trial in first:
        finish(search, trial, 0.5 + trial.number / 10)
    assert waiting(search) == [(3, 1)]
    assert search.promote() == 1
    assert waiting(search) == [(3, 1), (2, 2)]


def test_one_that_has_said_its_score_and_still_runs_does_not_go_on():
    search = made(1)
    trial = search.claim("me")
    trial.report(0.5, 1)
    assert search.promote() == 0
    search.end(trial, TrialState.PRUNED, 0.5)
    assert search.promote() == 1


# What fails


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("workers", [1, 4])
def test_the_next_best_goes_on_in_place_of_one_that_fails(workers, seed):
    score = table(seed, failing=0.25, among=20)
    search = made(32, BY_FOURS)
    work_off(search, score, workers, seed)
    assert trained(search) == sorted_out(range(32), score)
    assert search.trials(TrialState.FAIL)


@pytest.mark.parametrize("place_that_fails", [0, 7])
def test_a_place_that_fails_at_the_first_rung_leaves_as_many_to_go_on(place_that_fails):
    search = made(8)
    work_off(search, lambda place, step: math.nan if place == place_that_fails else place / 8)
    best = [place for place in (7, 6, 5, 4, 3) if place != place_that_fails]
    assert [place for place, target in trained(search) if target == 2] == sorted(best[:4])
    assert [place for place, target in trained(search) if target == 4] == sorted(best[:2])


def test_where_all_fail_nobody_goes_on():
    search = made(8)
    work_off(search, lambda place, step: math.nan)
    assert trained(search) == [(place, 1) for place in range(8)]


def test_one_that_went_on_and_fails_for_good_is_replaced():
    search = made(4, Halving((1, 4), 4))
    for _ in range(4):
        trial = search.claim("me")
        finish(search, trial, trial.number / 4)
    for attempt in range(1, MOST_ATTEMPTS + 1):
        trial = search.claim("me")
        assert (place_of(trial), search.target(trial), trial.user_attrs[ATTEMPT]) == (3, 4, attempt)
        assert search.give_up(trial, "its worker was lost")
        assert waiting(search) == ([(3, 4)] if attempt < MOST_ATTEMPTS else [])
    assert search.promote() == 1
    assert waiting(search) == [(2, 4)]
    finish(search, search.claim("me"), 0.1)
    assert search.claim("me") is None
    assert trained(search, TrialState.COMPLETE) == [(2, 4)]


def test_a_score_on_the_way_to_a_failure_counts_for_nothing():
    search = made(8, BY_FOURS)
    work_off(search, lambda place, step: math.nan if (place, step) == (7, 96) else place / 8)
    # 5 goes on to where 7 was, and 6 to where it failed.
    assert [pair for pair in trained(search) if pair[1] > 3] == [(5, 12), (6, 12), (6, 96), (7, 12), (7, 96)]


# What is interrupted


def in_the_middle(reached=1):
    """A search whose best trial has gone on and runs; gives both."""
    search = made(4, Halving((1, 4, 16), 4))
    for _ in range(4):
        trial = search.claim("me")
        finish(search, trial, trial.number / 4)
    trial = search.claim("me")
    assert (place_of(trial), search.target(trial)) == (3, 16)
    rest = train(search, trial, lambda place, step: place / 4)
    for _ in range(reached):
        next(rest)
    return search, trial


def check_goes_on(search, attempt):
    """One waits again, up to the same step and with the same parameters, and nobody has gone on in its place."""
    assert search.promote() == 0
    assert waiting(search) == [(3, 16)]
    again = search.claim("me")
    assert again.user_attrs[ATTEMPT] == attempt
    assert SPACE.suggest(again)[0] == SPACE.subsets(0)[3]
    finish(search, again, 0.5)
    assert search.claim("me") is None
    assert trained(search, TrialState.COMPLETE) == [(3, 16)]


@pytest.mark.parametrize("reached", [0, 1, 2])
def test_an_interrupted_trial_that_has_gone_on_waits_again(reached):
    search, trial = in_the_middle(reached)
    assert search.give_up(trial, "interrupted", count=False)
    check_goes_on(search, attempt=1)


@pytest.mark.parametrize("reached", [0, 1, 2])
def test_a_lost_trial_that_has_gone_on_waits_again(reached):
    search, trial = in_the_middle(reached)
    assert [lost.number for lost in search.give_up_lost(lambda trial: False)] == [trial.number]
    check_goes_on(search, attempt=2)


def test_one_that_was_given_up_by_a_process_that_was_killed_then_waits_again_when_a_leader_goes_on():
    search, trial = in_the_middle()
    trial.set_user_attr(AGAIN, 1)
    search.end(trial, TrialState.FAIL)
    assert search.promote() == 0
    search.fill(SPACE.queue(4, seed=0))
    check_goes_on(search, attempt=1)


@pytest.mark.parametrize("seed", range(4))
def test_interruptions_change_nothing(seed):
    score = table(seed)
    search = made(32, BY_FOURS)
    work_off(search, score, workers=4, seed=seed, interrupt=True)
    assert search.trials(TrialState.FAIL)
    assert trained(search) == sorted_out(range(32), score)


# Several processes


class Racing(Halving):
    """While one process finds out who is to go on, another one does so, too, and has queued them before."""

    def promoted(self, trials, maximise):
        found = list(super().promoted(trials, maximise))
        self.other.promote()
        return iter(found)


def racing(search):
    halving = Racing(search.halving.rungs, search.halving.reduction)
    object.__setattr__(halving, "other", search)
    return replace(search, halving=halving)


def test_of_two_that_promote_at_once_the_work_is_done_once():
    search = made(4)
    for _ in range(4):
        trial = search.claim("me")
        finish(search, trial, trial.number / 4)
    racing(search).promote()
    assert waiting(search) == [(3, 2), (2, 2)] * 2
    assert search.promote() == 0
    work_off(search, lambda place, step: place / 4)
    assert trained(search) == [(0, 1), (1, 1), (2, 1), (2, 2), (3, 1), (3, 2), (3, 4)]
    twice = [trial for trial in search.trials() if trial.user_attrs.get(REASON) == QUEUED_TWICE]
    assert [(place_of(trial), search.target(trial), trial.state) for trial in twice] == [
        (3, 2, TrialState.FAIL),
        (2, 2, TrialState.FAIL),
    ]
    assert search.spent_steps() == 4 * 1 + 2 * 2 + 4


@pytest.mark.parametrize("interrupt", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_where_all_promote_at_once_the_same_go_on(seed, interrupt):
    score = table(seed)
    search = made(32, BY_FOURS)
    work_off(racing(search), score, workers=4, seed=seed, interrupt=interrupt)
    assert any(trial.user_attrs.get(REASON) == QUEUED_TWICE for trial in search.trials())
    assert trained(search) == sorted_out(range(32), score)


def test_workers_at_once_on_one_journal_train_each_place_once(tmp_path):
    address, score = f"journal:{tmp_path}/hpt.journal", table(seed=1)
    search = made(16, BY_FOURS, storage=open_storage(address))

    def work(_):
        own = replace(search, storage=open_storage(address))
        taken = 0
        while trial := own.claim("me"):
            finish(own, trial, score)
            taken += 1
        return taken

    with ThreadPoolExecutor(4) as pool:
        # Who finds nothing to do ends, and is started again while others have more.
        while sum(pool.map(work, range(4))):
            pass
    assert trained(search) == sorted_out(range(16), score)


# What is added


@pytest.mark.parametrize(
    ("added", "expected"),
    [
        # Of 2, 3, 4 and 5, two go on from the second rung: 3, which has done so, and 5.
        ([0.25, 0.35, 0.05, 0.15], [(2, 2), (3, 2), (3, 4), (4, 2), (5, 2), (5, 4)]),
        ([0.9, 0.8, 0.7, 0.6], [(2, 2), (3, 2), (3, 4), (4, 2), (4, 4), (5, 2), (5, 4), (6, 2), (7, 2)]),
        # A second one of the first four goes on from the second rung, as two may now.
        ([0.01, 0.02, 0.03, 0.04], [(0, 2), (1, 2), (2, 2), (2, 4), (3, 2), (3, 4)]),
    ],
)
def test_more_trials_go_on_by_the_new_numbers(added, expected):
    scores = [0.05, 0.1, 0.2, 0.3, *added]
    search = made(4)
    work_off(search, lambda place, step: scores[place])
    assert [pair for pair in trained(search) if pair[1] > 1] == [(2, 2), (3, 2), (3, 4)]
    search.fill(SPACE.queue(8, seed=0))
    work_off(search, lambda place, step: scores[place])
    assert [pair for pair in trained(search) if pair[1] > 1] == expected
    assert len(trained(search)) == 8 + len(expected)


@pytest.mark.parametrize("seed", range(3))
def test_more_trials_that_come_while_some_are_trained(seed):
    score = table(seed)
    search = made(20, BY_FOURS)
    first = [search.claim("me") for _ in range(10)]
    search.fill(SPACE.queue(32, seed=0))
    for trial in first:
        finish(search, trial, score)
    work_off(search, score, workers=3, seed=seed)
    assert trained(search) == sorted_out(range(32), score)


def test_trials_that_others_queue_take_part():
    search = made(6)
    plain = optuna.load_study(study_name="s", storage=search.storage)
    for subset in (("flip",), ("gray",)):
        plain.enqueue_trial(SPACE.parameters(subset))
    good, bad = "of others 6", "of others 7"

    def score(place, step):
        return {good: 0.9, bad: -1.0}.get(place, 0.1) + (place / 100 if isinstance(place, int) else 0.0)

    work_off(search, score, workers=2)
    assert trained(search) == sorted_out([*range(6), good, bad], score, BY_TWOS)
    (record,) = [record for record in search.records() if record.subset == ("flip",)]
    assert (record.state, record.score) == (COMPLETE, 0.9)
    assert trained(search, TrialState.COMPLETE) == [(good, 4), (5, 4)]


@pytest.mark.parametrize("count", [False, True])
def test_a_trial_of_others_that_has_gone_on_waits_again(count):
    search = made(3, Halving((1, 4), 4))
    search.optuna_study().enqueue_trial(SPACE.parameters(("flip",)))
    work = [search.claim("me") for _ in range(4)]
    for trial in work:
        finish(search, trial, trial.number / 4)
    for _ in range(2):
        trial = search.claim("me")
        assert (place_of(trial), search.target(trial)) == ("of others 3", 4)
        assert search.give_up(trial, "its worker was lost", count)
    assert waiting(search) == [("of others 3", 4)]
    assert SPACE.suggest(search.claim("me"))[0] == ("flip",)


# When the time is over


def stop_by_time(others):
    """A search of four places of which the last is the best: it was to reach step 16, and its time was over at step 1.

    Args:
        others: whether that one was queued by others.
    """
    search = made(4 - others, Halving((1, 4, 16), 2))
    if others:
        search.optuna_study().enqueue_trial(SPACE.parameters(("flip",)))
    for score in (0.0, 0.1, 0.2, 0.3, 0.3, 0.2):
        finish(search, search.claim("me"), score)
    trial = search.claim("me")
    assert trial.user_attrs[TARGET] == 16
    trial.report(0.3, 1)
    search.end(trial, TrialState.PRUNED, 0.3, "minutes are over", again=True)
    return search, place_of(trial)


def test_a_record_of_what_was_stopped_has_the_score_that_was_reached_before():
    search, _ = stop_by_time(others=False)
    assert sorted(record.reached for record in search.records()) == [1, 1, 4, 4]
    (best,) = [record for record in search.records() if record.subset == SPACE.subsets(0)[3]]
    assert best.scores == {1: 0.3, 4: 0.3}


@pytest.mark.parametrize("others", [False, True])
def test_what_was_stopped_continues_with_the_next_command(others):
    search, place = stop_by_time(others)
    search.fill(SPACE.queue(4 - others, seed=0))
    assert waiting(search) == [(place, 16)]
    work_off(search, lambda place, step: 0.3)
    assert trained(search, TrialState.COMPLETE) == [(place, 16)]


def test_one_that_was_stopped_counts_as_one_that_may_be_better():
    search = made(4, Halving((1, 4, 16), 2))
    for _ in range(5):
        trial = search.claim("me")
        finish(search, trial, place_of(trial) / 4)
    stopped = search.claim("me")
    assert (place_of(stopped), stopped.user_attrs[TARGET]) == (2, 4)
    stopped.report(0.5, 1)
    search.end(stopped, TrialState.PRUNED, 0.5, "minutes are over", again=True)
    assert search.promote() == 0
    search.fill(SPACE.queue(4, seed=0))
    work_off(search, lambda place, step: 1.0)
    # After 4 steps, 2 is better.
    assert trained(search, TrialState.COMPLETE) == [(2, 16)]
