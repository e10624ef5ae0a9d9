"""The attributes that we give Optuna's trials, and the trials as plain records."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from hpt_mlflow.tuning.records import COMPLETE, FAILED, PRUNED, RUNNING, WAITING, TrialRecord
from hpt_mlflow.tuning.space import Space

# Attributes of a trial: its place in the queue, its attempt, the attempt as which it is queued again; the step that it
# is to reach unless that is the first rung, the steps to its next rung; its MLflow run, the process that
# works on it and since when (seconds since the epoch), why it ended.
PLACE, ATTEMPT, AGAIN = "hpt.place", "hpt.attempt", "hpt.again"
TARGET, STEPS = "hpt.target", "hpt.steps"
RUN, OWNER, TAKEN, REASON = "hpt.run_id", "hpt.owner", "hpt.taken", "hpt.reason"
QUEUED_TWICE = "it was queued twice"
STATES = {
    TrialState.COMPLETE: COMPLETE,
    TrialState.PRUNED: PRUNED,
    TrialState.FAIL: FAILED,
    TrialState.RUNNING: RUNNING,
    TrialState.WAITING: WAITING,
}


def place_of(trial: FrozenTrial) -> int | str:
    """The place of a trial in the queue; a unique name if another program queued it."""
    place: int | str = trial.user_attrs.get(PLACE, f"of others {trial.number}")
    return place


def parameters_of(trial: FrozenTrial) -> dict[str, Any]:
    """The parameters of a trial: those that it was queued with, and those sampled so far."""
    return {**trial.system_attrs.get("fixed_params", {}), **trial.params}


def scores_of(trial: FrozenTrial) -> dict[int, float]:
    """Its finite scores by steps of training, in their order."""
    return {step: score for step, score in sorted(trial.intermediate_values.items()) if math.isfinite(score)}


def records_of(trials: Iterable[FrozenTrial], space: Space) -> list[TrialRecord]:
    """One record per place in the queue: of the trial that has come furthest there, in the order of numbers."""
    furthest: dict[object, FrozenTrial] = {}
    for trial in trials:
        best = furthest.setdefault(place_of(trial), trial)
        if _rank(trial) >= _rank(best):
            furthest[place_of(trial)] = trial
    return sorted((_record(trial, space) for trial in furthest.values()), key=lambda record: record.number)


def _rank(trial: FrozenTrial) -> tuple[int, int]:
    """By which the most telling of several trials that do the same work has the highest rank."""
    ranks = {TrialState.RUNNING: 2, TrialState.WAITING: 1, TrialState.FAIL: 0}
    rank = -1 if trial.user_attrs.get(REASON) == QUEUED_TWICE else ranks.get(trial.state, 3)
    return rank, max(scores_of(trial), default=0)


def _record(trial: FrozenTrial, space: Space) -> TrialRecord:
    subset: tuple[str, ...] | None
    try:
        subset, strengths = space.read(parameters_of(trial))
    except KeyError:
        # Not all of them are sampled yet.
        subset, strengths = None, space.strengths
    return TrialRecord(
        trial.number,
        subset,
        STATES[trial.state],
        scores_of(trial),
        strengths,
        # A trial that completed while it was being given up has a reason, too.
        trial.user_attrs.get(REASON, "") if trial.state in (TrialState.PRUNED, TrialState.FAIL) else "",
        trial.user_attrs.get(RUN, ""),
    )
