"""The workers of a search on this machine: started, watched, started again, and ended together."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from hpt_mlflow.errors import HptError
from hpt_mlflow.stages.processes.children import Children, Ended, children
from hpt_mlflow.stages.processes.device import device_in_turn
from hpt_mlflow.stages.search.trials import Job
from hpt_mlflow.tracking.runs.search_runs import LostRuns, is_worked_on
from hpt_mlflow.tuning.search import SharedSearch
from hpt_mlflow.tuning.trials import OWNER, RUN, TAKEN

POLL_SECONDS = 1.0
# How often in a row workers may die without having finished a trial.
MOST_DEATHS = 5


def work_off(study: SharedSearch, job: Job, first_rung: int, run_id: str, on_change: Callable[[], object]) -> None:
    """Let workers take trials until none is left, or a budget is spent, here and on other machines.

    Trials whose worker was lost are found, called failed, and tried again.

    Args:
        run_id: the run that those of the trials are nested in.
        on_change: is called whenever a trial has ended.

    Raises:
        HptError: what a worker has to say that cannot work at all.
        KeyboardInterrupt: a worker was interrupted.
    """
    lost, ended, succeeded = LostRuns(), -1, 0
    with children("hpt_mlflow.stages.search.trials", job.settings.workers, run_id) as processes:
        crew = _Crew(job, processes)
        while True:
            for trial in study.give_up_lost(_is_alive):
                lost.add(trial.user_attrs.get(RUN, ""))
            lost.settle()
            over = job.is_over or not study.has_steps_for(first_rung)
            if not over:
                study.promote()
            count = Counter(trial.state for trial in study.trials())
            if (now := count[TrialState.COMPLETE] + count[TrialState.PRUNED]) != succeeded:
                succeeded, crew.deaths = now, 0
            if (now := succeeded + count[TrialState.FAIL]) != ended:
                ended = now
                on_change()
            waiting = 0 if over else count[TrialState.WAITING]
            at_work = crew.keep(waiting)
            if not waiting and not at_work and not count[TrialState.RUNNING]:
                break
            time.sleep(POLL_SECONDS)
    lost.settle(wait=True)


class _Crew:
    """Processes that take trials.

    Attributes:
        deaths: of workers that were killed, since a trial has ended.
    """

    def __init__(self, job: Job, processes: Children) -> None:
        self.deaths = 0
        self._job = job
        self._processes = processes

    def keep(self, waiting: int) -> int:
        """Look after those that have ended, and start as many as there are trials for; gives how many are at work."""
        for ended in self._processes.ended():
            self._look_into(ended)
        # One that has just begun will take a trial of those that wait.
        for place in self._processes.free[: max(0, waiting - len(self._processes))]:
            self._processes.start(place, self._job_at(place))
        return len(self._processes)

    def _job_at(self, place: int) -> dict[str, Any]:
        settings = replace(self._job.settings, device=device_in_turn(self._job.settings.device, place))
        return {"settings": asdict(settings), "study": self._job.study, "deadline": self._job.deadline}

    def _look_into(self, ended: Ended) -> None:
        """Count a worker that died; raise the error of one that cannot work."""
        if ended.error:
            raise ended.error
        self.deaths += ended.code != 0
        if self.deaths >= MOST_DEATHS:
            raise HptError(
                f"{self.deaths} workers in a row have died without finishing a trial; the last one {ended.how}",
                "see whether the machine has enough memory for --workers",
            )


def _is_alive(trial: FrozenTrial) -> bool:
    attributes = trial.user_attrs
    age_seconds = time.time() - attributes.get(TAKEN, time.time())
    return is_worked_on(attributes.get(RUN, ""), attributes.get(OWNER, ""), age_seconds)
