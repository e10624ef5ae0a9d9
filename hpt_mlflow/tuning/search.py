"""A search that many processes share: created once, its trials queued beforehand, each taken by one process.

All trials enter Optuna's queue when the search is created; those whose parameters the sampler chooses enter it empty.
So a budget of n trials is n trials with any number of search workers, a grid is visited once, and what is left waits
in the storage for whoever resumes. Optuna's own `ask` would create a new trial once the queue is empty, and samples
before a trial's number can seed the sampler; hence trials are taken from the storage here.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler, RandomSampler
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from hpt_mlflow.errors import HptError, differences
from hpt_mlflow.tuning.halving import Halving
from hpt_mlflow.tuning.records import LOST, TrialRecord
from hpt_mlflow.tuning.sampling import make_sampler
from hpt_mlflow.tuning.space import Space
from hpt_mlflow.tuning.trials import (
    AGAIN,
    ATTEMPT,
    OWNER,
    PLACE,
    QUEUED_TWICE,
    REASON,
    STEPS,
    TAKEN,
    TARGET,
    parameters_of,
    place_of,
    records_of,
)

# Attributes of an Optuna study: the settings that decide its scores, the arithmetic of its trials, the process that
# leads it, its MLflow run.
IDENTITY, PRECISION, LEADER, LEADER_RUN = "hpt.identity", "hpt.precision", "hpt.leader", "hpt.run_id"
# How often a trial whose process was killed is tried.
MOST_ATTEMPTS = 3
# How long a search may lack its identity, which the process that creates it sets a moment later.
IDENTITY_SECONDS = 10.0


def attributes_of(storage: BaseStorage, name: str) -> dict[str, Any]:
    """The attributes of a search; empty if there is none of this name."""
    try:
        return optuna.load_study(study_name=name, storage=storage).user_attrs
    except KeyError:
        return {}


@dataclass(frozen=True)
class SharedSearch:
    """A search in an Optuna storage, as each process opens it.

    Attributes:
        name: of the Optuna study.
        pruner: ends trials between rungs.
        halving: which trials continue beyond the first rung; None leaves that to the pruner.
    """

    storage: BaseStorage
    name: str
    space: Space
    pruner: BasePruner
    seed: int
    halving: Halving | None = None

    def create(self, identity: Mapping[str, Any], maximise: bool) -> bool:
        """Create the search unless it exists, and return whether it was created here: by one of several at once.

        Args:
            identity: what decides the scores, as JSON can hold it.

        Raises:
            HptError: a different search has this name.
        """
        try:
            with _without_log():
                optuna_study = optuna.create_study(
                    storage=self.storage, study_name=self.name, direction="maximize" if maximise else "minimize"
                )
        except DuplicatedStudyError:
            self.check_identity(identity)
            return False
        optuna_study.set_user_attr(IDENTITY, json.dumps(identity, sort_keys=True))
        return True

    def check_identity(self, identity: Mapping[str, Any]) -> None:
        """Raise HptError if the existing search of this name is a different one."""
        existing = self._read_identity()
        if existing is None:
            raise HptError(f"{self.name!r} exists and was not made by hpt tune", "choose another name", setting="study")
        if different := differences(identity, json.loads(existing)):
            raise HptError(
                f"{self.name!r} exists with other settings: here {', '.join(different)}",
                "use the settings that it has, or choose another name",
                setting="study",
            )

    def _read_identity(self) -> str | None:
        """The identity of the existing search; waits a moment if it was only just created."""
        deadline = time.monotonic() + IDENTITY_SECONDS
        while True:
            # In this order, as trials are queued after the identity is set.
            settled = bool(self.trials()) or time.monotonic() > deadline
            identity = self.optuna_study().user_attrs.get(IDENTITY)
            if identity is not None or settled:
                return identity
            time.sleep(0.05)

    def set_attribute(self, name: str, value: str) -> None:
        """Set an attribute that all processes see; see `attributes_of`."""
        self.optuna_study().set_user_attr(name, value)

    def optuna_study(self, sampler: BaseSampler | None = None) -> optuna.Study:
        """The Optuna study as it is now."""
        sampler = sampler or RandomSampler()
        return optuna.load_study(study_name=self.name, storage=self.storage, sampler=sampler, pruner=self.pruner)

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """The trials in some states, or in any."""
        return self.optuna_study().get_trials(deepcopy=False, states=states or None)

    def records(self) -> list[TrialRecord]:
        """One record per place in the queue: of the trial that has come furthest there."""
        return records_of(self.trials(), self.space)

    def fill(self, queue: Sequence[Mapping[str, Any]]) -> None:
        """Queue the trials that were not queued before: all of them, or those by which the budget has grown.

        Also queues again trials that ran out of time, and those given up by a process that was killed before it could
        queue them again.
        """
        last = {place_of(trial): trial for trial in self.trials()}
        for place, parameters in enumerate(queue):
            if place not in last:
                self._enqueue(parameters, place, attempt=1)
        for trial in last.values():
            self._queue_again(trial)

    def _queue_again(self, trial: FrozenTrial) -> None:
        """Queue a trial that has ended, if it is to be tried again."""
        if AGAIN in trial.user_attrs and trial.state.is_finished():
            self._enqueue(parameters_of(trial), place_of(trial), trial.user_attrs[AGAIN], trial.user_attrs.get(TARGET))

    def _enqueue(
        self, parameters: Mapping[str, Any], place: int | str, attempt: int, target: int | None = None
    ) -> None:
        attributes = {PLACE: place, ATTEMPT: attempt} | ({TARGET: target} if target else {})
        self.optuna_study().enqueue_trial(dict(parameters), user_attrs=attributes)

    def claim(self, owner: str) -> Trial | None:
        """Take the first trial in the queue, for this process alone; None if none is left."""
        while True:
            trial = self._take_first(owner)
            if not trial and not self.promote():
                return None
            if trial and not self._is_done_elsewhere(trial):
                return trial
            if trial:
                self.end(trial, TrialState.FAIL, reason=QUEUED_TWICE)

    def _take_first(self, owner: str) -> Trial | None:
        for waiting in self.trials(TrialState.WAITING):
            trial_id = self._id_of(waiting)
            try:
                taken = self.storage.set_trial_state_values(trial_id, state=TrialState.RUNNING)
            except UpdateFinishedTrialError:
                continue
            if taken:
                optuna_study = self.optuna_study(make_sampler(self.space, self.seed, waiting.number))
                # Optuna's cache of a database finds a trial by its id only after reading all trials of the study.
                optuna_study.get_trials(deepcopy=False)
                trial = Trial(optuna_study, trial_id)
                trial.set_user_attr(OWNER, owner)
                trial.set_user_attr(TAKEN, time.time())
                return trial
        return None

    def _is_done_elsewhere(self, trial: Trial) -> bool:
        """Whether an earlier trial does the same work: two processes may queue it at the same time."""
        place, target = trial.user_attrs.get(PLACE), self.target(trial) or 0
        return place is not None and any(
            other.number < trial.number
            and other.user_attrs.get(PLACE) == place
            and AGAIN not in other.user_attrs
            and (self.target(other) or 0) >= target
            for other in self.trials(TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED)
        )

    def promote(self) -> int:
        """Queue the trials that successive halving continues to a later rung; returns how many."""
        if not self.halving:
            return 0
        trials: dict[int | str, list[FrozenTrial]] = {}
        for trial in self.trials():
            if trial.user_attrs.get(REASON) != QUEUED_TWICE:
                trials.setdefault(place_of(trial), []).append(trial)
        maximise = self.optuna_study().direction == StudyDirection.MAXIMIZE
        promoted = list(self.halving.promoted(trials, maximise))
        for place, target in promoted:
            self._enqueue(parameters_of(trials[place][-1]), place, attempt=1, target=target)
        return len(promoted)

    def target(self, trial: FrozenTrial | Trial) -> int | None:
        """The rung at which a trial ends by successive halving; None without it."""
        return self.halving.target(trial) if self.halving else None

    def spent_steps(self) -> int:
        """Optimiser steps of all trials, including failed ones."""
        return sum(int(trial.user_attrs.get(STEPS, 0)) for trial in self.trials())

    def end(
        self, trial: Trial, state: TrialState, score: float | None = None, reason: str = "", again: bool = False
    ) -> tuple[TrialState, str]:
        """Store how a trial ended, and return state and reason; a trial whose score is not finite has failed.

        Args:
            again: whether it is to be tried again by the next command.
        """
        if score is not None and not math.isfinite(score):
            state, score, reason = TrialState.FAIL, None, f"its score is {score}"
        if reason:
            trial.set_user_attr(REASON, reason)
        if again:
            trial.set_user_attr(AGAIN, trial.user_attrs.get(ATTEMPT, 1))
        values = None if score is None else [score]
        self.storage.set_trial_state_values(self._id_of(trial), state, values)
        return state, reason

    def give_up(self, trial: FrozenTrial | Trial, reason: str, count: bool = True) -> bool:
        """Mark a trial that its process does not finish as failed, and queue it again.

        Args:
            count: whether this was an attempt; an interruption is not.

        Returns:
            Whether it was still running: if several processes give it up at once, one of them does.
        """
        trial_id = self._id_of(trial)
        attempt = int(self.storage.get_trial(trial_id).user_attrs.get(ATTEMPT, 1))
        # While it runs, as a finished trial accepts no attributes.
        try:
            self.storage.set_trial_user_attr(trial_id, REASON, reason)
            if not count or attempt < MOST_ATTEMPTS:
                self.storage.set_trial_user_attr(trial_id, AGAIN, attempt + int(count))
            self.storage.set_trial_state_values(trial_id, TrialState.FAIL)
        except UpdateFinishedTrialError:
            return False
        self._queue_again(self.storage.get_trial(trial_id))
        return True

    def give_up_lost(self, is_alive: Callable[[FrozenTrial], bool]) -> list[FrozenTrial]:
        """Give up all running trials that no process works on any more, and return them."""
        lost = [trial for trial in self.trials(TrialState.RUNNING) if not is_alive(trial)]
        return [trial for trial in lost if self.give_up(trial, LOST)]

    def _id_of(self, trial: FrozenTrial | Trial) -> int:
        """The storage's id of a trial."""
        optuna_study_id = self.storage.get_study_id_from_name(self.name)
        return self.storage.get_trial_id_from_study_id_trial_number(optuna_study_id, trial.number)


@contextmanager
def _without_log() -> Iterator[None]:
    """Keep Optuna from logging that a study was created."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(verbosity, optuna.logging.WARNING))
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)
