from __future__ import annotations

import numpy as np
import optuna
import pytest
from optuna.pruners import HyperbandPruner, NopPruner

from hpt_mlflow.settings.tune import PRUNERS
from hpt_mlflow.tuning.halving import Halving
from hpt_mlflow.tuning.pruning import make_halving, make_pruner, rungs


def train(pruner, plan, scores, direction="maximize", at_every_step=False):
    """Give each trial in turn its scores at the rungs; what each has reached.

    Args:
        scores: of each trial, at each rung or one for all of them.
    """
    # Hyperband chooses the bracket of a trial by the name of its study, which is random where none is given.
    study = optuna.create_study(study_name="pruning", direction=direction, pruner=pruner)
    reached = []
    for of_trial in scores:
        trial = study.ask()
        by_step = dict(zip(plan, np.broadcast_to(of_trial, len(plan)), strict=True))
        for step in range(1, plan[-1] + 1):
            if at_every_step or step in by_step:
                trial.report(float(by_step[min(rung for rung in plan if rung >= step)]), step)
                if step < plan[-1] and trial.should_prune():
                    break
        reached.append(step)
        study.tell(trial, 0.0)
    return reached


@pytest.mark.parametrize(
    ("steps", "first", "reduction", "found"),
    [
        (64, 4, 4, (4, 16, 64)),
        (64, 1, 2, (1, 2, 4, 8, 16, 32, 64)),
        (65, 4, 4, (4, 16, 65)),
        (100, 6, 4, (6, 24, 100)),
        (63, 4, 4, (4, 16, 63)),
        (100, 6, 3, (6, 18, 54, 100)),
        (10, 9, 4, (9, 10)),
        (10, 10, 4, (10,)),
        (10, 11, 4, (10,)),
        (1, 1, 2, (1,)),
        (2, 1, 4, (1, 2)),
    ],
)
def test_rungs_are_geometric_and_end_with_the_length(steps, first, reduction, found):
    assert rungs(steps, first, reduction) == found


def test_rungs_ascend_each_so_many_times_the_one_before():
    for steps in range(1, 80):
        for first in range(1, steps + 2):
            for reduction in (2, 3, 4):
                found = rungs(steps, first, reduction)
                assert found[-1] == steps
                assert found[:-1] == tuple(first * reduction**i for i in range(len(found) - 1))
                assert all(rung < steps for rung in found[:-1])
                # One more would lie in the last third, or there is but one.
                assert first * reduction ** (len(found) - 1) > steps * 2 / 3 or steps <= first
                assert all(rung <= steps * 2 / 3 for rung in found[1:-1])


def test_each_name_has_its_pruner():
    made = {name: type(make_pruner(name, 64, 4, 4)) for name in PRUNERS}
    assert made == {"halving": NopPruner, "hyperband": HyperbandPruner, "none": NopPruner}


def test_halving_alone_sets_targets():
    made = {name: make_halving(name, (4, 16, 64), 4) for name in PRUNERS}
    assert made == {"halving": Halving((4, 16, 64), 4), "hyperband": None, "none": None}


@pytest.mark.parametrize("name", PRUNERS)
@pytest.mark.parametrize("first", [64, 65])
def test_a_trial_with_one_rung_is_not_pruned(name, first):
    assert isinstance(make_pruner(name, 64, first, 4), NopPruner)


def test_hyperband_has_brackets_that_begin_at_later_rungs():
    worse_and_worse = [-float(i) for i in range(40)]
    reached = train(make_pruner("hyperband", 64, 4, 4), (4, 16, 64), worse_and_worse)
    assert set(reached) == {4, 16, 64}
    assert set(reached[10:]) == {4, 16, 64}


def test_hyperband_prunes_at_our_rungs_and_nowhere_else():
    plan = rungs(50, 3, 3)
    scores = np.random.default_rng(0).random((60, len(plan)))
    reached = train(make_pruner("hyperband", 50, 3, 3), plan, scores, at_every_step=True)
    assert set(reached) == set(plan)


@pytest.mark.parametrize("name", ["halving", "none"])
def test_without_a_pruner_every_trial_is_trained_up_to_its_target(name):
    assert train(make_pruner(name, 64, 4, 4), (4, 16, 64), [-float(i) for i in range(10)]) == [64] * 10
