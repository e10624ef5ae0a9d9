"""A study that many workers share: made once, its trials queued beforehand, each taken by one worker.

All trials are put into Optuna's queue when the study is made, those whose parameters the sampler is to choose as empty
ones. So a budget of n trials is n trials with any number of workers, a grid is visited once, and what is left waits
there for whoever goes on.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
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

# What it would say of each study and trial, we say ourselves.
optuna.logging.set_verbosity(optuna.logging.WARNING)

# Attributes of a study: what it is, the arithmetic of its trials, the process that leads it, its MLflow run.
IDENTITY, PRECISION, LEADER, LEADER_RUN = "hpt.identity", "hpt.precision", "hpt.leader", "hpt.run_id"
# How often a trial is tried whose worker was killed.
MOST_ATTEMPTS = 3
# How long a study may be without its identity, which the process that makes it notes a moment later.
IDENTITY_SECONDS = 10.0


def attributes_of(storage: BaseStorage, name: str) -> dict[str, Any]:
    """What is noted of a study; nothing where there is none of this name."""
    try:
        return optuna.load_study(study_name=name, storage=storage).user_attrs
    except KeyError:
        return {}


@dataclass(frozen=True)
class SharedStudy:
    """A study, as each of its workers opens it.

    Attributes:
        budget_steps: optimiser steps of all trials together; None for no limit.
        halving: who goes on beyond the first rung; None where that is left to the pruner.
    """

    storage: BaseStorage
    name: str
    space: Space
    pruner: BasePruner
    seed: int
    budget_steps: int | None = None
    halving: Halving | None = None

    def create(self, identity: Mapping[str, Any], maximise: bool) -> bool:
        """Make the study unless it is there; of several that try at once, one makes it. Gives whether it was made here.

        Args:
            identity: what decides on the scores, as JSON can hold it.

        Raises:
            HptError: a study of this name is there and is another one.
        """
        try:
            study = optuna.create_study(
                storage=self.storage, study_name=self.name, direction="maximize" if maximise else "minimize"
            )
        except DuplicatedStudyError:
            self.check_identity(identity)
            return False
        study.set_user_attr(IDENTITY, json.dumps(identity, sort_keys=True))
        return True

    def note(self, name: str, value: str) -> None:
        """Set an attribute of the study."""
        self.open().set_user_attr(name, value)

    def open(self, sampler: BaseSampler | None = None) -> optuna.Study:
        """The study as it is now."""
        return optuna.load_study(
            study_name=self.name,
            storage=self.storage,
            sampler=sampler or RandomSampler(),
            pruner=self.pruner,
        )

    def fill(self, queue: Sequence[Mapping[str, Any]]) -> None:
        """Queue those trials that were not queued before: all of them, or those by which a budget has grown.

        One whose budget was spent on its way is queued again, and so is one that was given up by a process that was
        killed before it could queue it itself.
        """
        last = {place_of(trial): trial for trial in self.trials()}
        for place, parameters in enumerate(queue):
            if place not in last:
                self._enqueue(parameters, place, attempt=1)
        for trial in last.values():
            # Of a budget that was spent, only where there is more of it now.
            if trial.state == TrialState.FAIL or self.has_steps_for(1):
                self._queue_again(trial)

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """The trials in some states, or in any."""
        return self.open().get_trials(deepcopy=False, states=states or None)

    def records(self) -> list[TrialRecord]:
        """What is known of each trial; of those that do the same work, of the one that has come furthest."""
        return records_of(self.trials(), self.space)

    def claim(self, owner: str) -> Trial | None:
        """Take the first trial of the queue, for this worker alone; None where none is left."""
        while True:
            trial = self._take_first(owner)
            if not trial and not self.promote():
                return None
            if trial and not self._is_done_elsewhere(trial):
                return trial
            if trial:
                self.end(trial, TrialState.FAIL, reason=QUEUED_TWICE)

    def promote(self) -> int:
        """Queue the trials that go on to a later rung by successive halving; gives how many those are."""
        if not self.halving:
            return 0
        trials: dict[int | str, list[FrozenTrial]] = {}
        for trial in self.trials():
            if trial.user_attrs.get(REASON) != QUEUED_TWICE:
                trials.setdefault(place_of(trial), []).append(trial)
        maximise = self.open().direction == StudyDirection.MAXIMIZE
        going_on = list(self.halving.going_on(trials, maximise))
        for place, target in going_on:
            self._enqueue(parameters_of(trials[place][-1]), place, attempt=1, target=target)
        return len(going_on)

    def target(self, trial: FrozenTrial | Trial) -> int | None:
        """The rung at which a trial ends by successive halving; None where it ends otherwise."""
        return self.halving.target(trial) if self.halving else None

    def _is_done_elsewhere(self, trial: Trial) -> bool:
        """Whether an earlier trial does the same work: two processes at once may queue it twice."""
        place, target = trial.user_attrs.get(PLACE), self.target(trial) or 0
        return place is not None and any(
            other.number < trial.number
            and other.user_attrs.get(PLACE) == place
            and AGAIN not in other.user_attrs
            and (self.target(other) or 0) >= target
            for other in self.trials(TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED)
        )

    def _take_first(self, owner: str) -> Trial | None:
        for waiting in self.trials(TrialState.WAITING):
            try:
                taken = self.storage.set_trial_state_values(waiting._trial_id, state=TrialState.RUNNING)
            except UpdateFinishedTrialError:
                continue
            if taken:
                study = self.open(make_sampler(self.space, self.seed, waiting.number))
                # In a database, Optuna knows those trials by their ids only that it has read with the study.
                study.get_trials(deepcopy=False)
                trial = Trial(study, waiting._trial_id)
                trial.set_user_attr(OWNER, owner)
                trial.set_user_attr(TAKEN, time.time())
                return trial
        return None

    def reserve(self, trial: Trial, steps: int) -> bool:
        """Whether the budget of steps lets a trial train up to so many; where it does, they count as spent."""
        if self.budget_steps is None:
            trial.set_user_attr(STEPS, steps)
            return True
        before = int(trial.user_attrs.get(STEPS, 0))
        # Said first and counted then, so that two workers cannot both take the last steps.
        trial.set_user_attr(STEPS, steps)
        if self.spent_steps() <= self.budget_steps:
            return True
        trial.set_user_attr(STEPS, before)
        return False

    def has_steps_for(self, steps: int) -> bool:
        """Whether the budget of steps has so many left."""
        return self.budget_steps is None or self.spent_steps() + steps <= self.budget_steps

    def spent_steps(self) -> int:
        """Optimiser steps of all trials, those that failed included."""
        return sum(int(trial.user_attrs.get(STEPS, 0)) for trial in self.trials())

    def end(
        self, trial: Trial, state: TrialState, score: float | None = None, reason: str = "", again: bool = False
    ) -> tuple[TrialState, str]:
        """Tell how a trial ended; without a finite score it can only have failed. Gives the state and the reason.

        Args:
            again: whether it is to be tried again when the budget has grown.
        """
        if score is not None and not math.isfinite(score):
            state, score, reason = TrialState.FAIL, None, f"its score is {score}"
        if reason:
            trial.set_user_attr(REASON, reason)
        if again:
            trial.set_user_attr(AGAIN, trial.user_attrs.get(ATTEMPT, 1))
        self.storage.set_trial_state_values(trial._trial_id, state, [score] if score is not None else None)
        return state, reason

    def give_up(self, trial: FrozenTrial | Trial, reason: str, count: bool = True) -> bool:
        """Call a trial failed that its worker does not finish, and queue it again.

        Args:
            count: whether this was an attempt; one that was only interrupted is none.

        Returns:
            Whether it was still running: of several that give it up at once, one does.
        """
        now = self.storage.get_trial(trial._trial_id)
        attempt = int(now.user_attrs.get(ATTEMPT, 1))
        # Told while it runs, as a finished trial takes no attributes any more.
        try:
            self.storage.set_trial_user_attr(trial._trial_id, REASON, reason)
            if not count or attempt < MOST_ATTEMPTS:
                self.storage.set_trial_user_attr(trial._trial_id, AGAIN, attempt + int(count))
            self.storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
        except UpdateFinishedTrialError:
            return False
        self._queue_again(self.storage.get_trial(trial._trial_id))
        return True

    def _queue_again(self, trial: FrozenTrial) -> None:
        """Queue a trial that has ended, where it is to be tried again."""
        if AGAIN in trial.user_attrs and trial.state.is_finished():
            self._enqueue(parameters_of(trial), place_of(trial), trial.user_attrs[AGAIN], trial.user_attrs.get(TARGET))

    def _enqueue(
        self, parameters: Mapping[str, Any], place: int | str, attempt: int, target: int | None = None
    ) -> None:
        attributes = {PLACE: place, ATTEMPT: attempt} | ({TARGET: target} if target else {})
        self.open().enqueue_trial(dict(parameters), user_attrs=attributes)

    def give_up_lost(self, is_alive: Callable[[FrozenTrial], bool]) -> list[FrozenTrial]:
        """Give up all running trials that nobody works on any more; gives those."""
        lost = [trial for trial in self.trials(TrialState.RUNNING) if not is_alive(trial)]
        return [trial for trial in lost if self.give_up(trial, LOST)]

    def check_identity(self, identity: Mapping[str, Any]) -> None:
        """Raise HptError where the study that is there is another one."""
        there = self._identity()
        if there is None:
            raise HptError(f"study: {self.name!r} is there already, and is not of hpt tune; name another one")
        if different := differences(identity, json.loads(there)):
            raise HptError(
                f"study: {self.name!r} is another one; here {', '.join(different)}; go on with what it has, or name "
                "another study"
            )

    def _identity(self) -> str | None:
        """What the study that is there says that it is; waits for a moment where it was only just made."""
        end = time.monotonic() + IDENTITY_SECONDS
        while True:
            # Looked at in this order, as trials come after the identity.
            settled = bool(self.trials()) or time.monotonic() > end
            there = self.open().user_attrs.get(IDENTITY)
            if there is not None or settled:
                return there
            time.sleep(0.05)
