"""The search workers on this machine: started, watched, restarted, and ended together."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from hpt_mlflow.errors import HptError
from hpt_mlflow.settings import TuneSettings
from hpt_mlflow.stages.processes.children import Children, children
from hpt_mlflow.stages.processes.device import device_in_turn
from hpt_mlflow.stages.search.trials import is_over
from hpt_mlflow.tracking.runs.search_runs import LostRuns, is_worked_on
from hpt_mlflow.tuning.search import SharedSearch
from hpt_mlflow.tuning.trials import OWNER, RUN, TAKEN

POLL_SECONDS = 1.0
# How many search workers may be killed before a trial has ended.
MOST_DEATHS = 5


def run_search_workers(
    settings: TuneSettings,
    search: SharedSearch,
    run_id: str,
    on_change: Callable[[], object] = lambda: None,
) -> None:
    """Let search workers take trials until none is left or the time is over, here and on other machines.

    Trials whose worker was killed are marked as failed, and tried again.

    Args:
        settings: as `run_trials` needs them; their `minutes` begin now.
        run_id: the parent of the trials' runs.
        on_change: called whenever a trial has ended.

    Raises:
        HptError: a search worker cannot work at all; its error.
        KeyboardInterrupt: a search worker was interrupted.
    """
    deadline = time.time() + 60 * settings.minutes if settings.minutes else None
    lost, succeeded, ended, deaths = LostRuns(), 0, -1, 0
    with children("hpt_mlflow.stages.search.trials", settings.workers, run_id) as processes:
        while True:
            given_up = search.give_up_lost(_is_alive)
            for trial in given_up:
                lost.add(trial.user_attrs.get(RUN, ""))
            lost.settle()
            count = _states(search)
            if (now := count[TrialState.COMPLETE] + count[TrialState.PRUNED]) != succeeded:
                succeeded, deaths = now, 0
            if (now := succeeded + count[TrialState.FAIL]) != ended:
                ended = now
                on_change()
            deaths = _count_deaths(processes, deaths)
            over = is_over(deadline)
            # Otherwise workers do when they find no trial: who promotes at the same time queues some trials twice.
            if not over and (given_up or not processes):
                search.promote()
                count = _states(search)
            waiting = 0 if over else count[TrialState.WAITING]
            # A worker that has just been started will take one of the waiting trials.
            for place in processes.free[: max(0, waiting - len(processes))]:
                processes.start(place, _job(settings, place, deadline))
            if not waiting and not processes and not count[TrialState.RUNNING]:
                break
            time.sleep(POLL_SECONDS)
    lost.settle(wait=True)


def _states(search: SharedSearch) -> Counter[TrialState]:
    """How many trials are in each state."""
    return Counter(trial.state for trial in search.trials())


def _count_deaths(processes: Children, deaths: int) -> int:
    """The number of search workers killed so far; raises HptError if one cannot work, or if too many were killed."""
    for ended in processes.ended():
        if ended.error:
            raise ended.error
        deaths += ended.code != 0
        if deaths >= MOST_DEATHS:
            raise HptError(
                f"{deaths} search workers in a row have died without finishing a trial; the last one {ended.how}",
                "see what they said; the machine may lack memory for --workers, or its GPU may fail",
            )
    return deaths


def _job(settings: TuneSettings, place: int, deadline: float | None) -> dict[str, Any]:
    own = replace(settings, device=device_in_turn(settings.device, place))
    return {"settings": asdict(own), "deadline": deadline}


def _is_alive(trial: FrozenTrial) -> bool:
    attributes = trial.user_attrs
    age_seconds = time.time() - attributes.get(TAKEN, time.time())
    return is_worked_on(attributes.get(RUN, ""), attributes.get(OWNER, ""), age_seconds)
