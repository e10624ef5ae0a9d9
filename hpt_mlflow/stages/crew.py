"""The workers of a study on this machine: started, watched, started again, and ended together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path

import torch
from optuna.trial import FrozenTrial, TrialState

from hpt_mlflow.errors import HptError
from hpt_mlflow.signals import INTERRUPTED
from hpt_mlflow.stages.launch import child_variables
from hpt_mlflow.stages.trials import ERROR_FILE, JOB_FILE, Job
from hpt_mlflow.tracking.study_runs import LostRuns, is_worked_on
from hpt_mlflow.tuning.study import OWNER, RUN, SharedStudy

POLL_SECONDS = 1.0
# What an interrupted worker may take to tell how its trial ended.
GOODBYE_SECONDS = 60.0
# How often in a row workers may die without having finished a trial.
MOST_DEATHS = 5


def work_off(study: SharedStudy, job: Job, first_rung: int, run_id: str, on_change: Callable[[], object]) -> None:
    """Let workers take trials until none is left, or a budget is spent, here and on other machines.

    Trials whose worker was lost are found, called failed, and tried again.

    Args:
        run_id: the run that those of the trials are nested in.
        on_change: is called whenever a trial has ended.

    Raises:
        HptError: what a worker has to say that cannot work at all.
        KeyboardInterrupt: a worker was interrupted.
    """
    lost, ended = LostRuns(), -1
    with _crew(job, run_id) as crew:
        while True:
            for trial in study.give_up_lost(_is_alive):
                lost.add(trial.user_attrs.get(RUN, ""))
            lost.settle()
            trials = study.trials()
            now = sum(trial.state.is_finished() for trial in trials)
            if now != ended:
                ended = now
                crew.deaths = 0
                on_change()
            waiting = sum(trial.state == TrialState.WAITING for trial in trials)
            if job.is_over or not study.has_steps_for(first_rung):
                waiting = 0
            at_work = crew.keep(waiting)
            if not waiting and not at_work and not any(trial.state == TrialState.RUNNING for trial in trials):
                break
            time.sleep(POLL_SECONDS)
    lost.settle(wait=True)
    on_change()


class _Crew:
    """Processes that take trials.

    Attributes:
        deaths: of workers that were killed, since a trial has ended.
    """

    def __init__(self, job: Job, run_id: str, folder: Path) -> None:
        self.deaths = 0
        self._job = job
        self._folder = folder
        self._variables = os.environ | child_variables(run_id, job.settings.workers)
        self._places: dict[int, subprocess.Popen[bytes]] = {}

    def keep(self, waiting: int) -> int:
        """Look after those that have ended, and start as many as there are trials for; gives how many are at work."""
        for place, process in list(self._places.items()):
            if process.poll() is not None:
                del self._places[place]
                self._look_into(process.returncode, self._place_folder(place))
        # One that has just begun takes a trial of those that wait.
        free = [place for place in range(self._job.settings.workers) if place not in self._places]
        for place in free[: max(0, waiting - len(self._places)) or (1 if waiting and not self._places else 0)]:
            self._places[place] = self._start(place)
        return len(self._places)

    def end(self) -> None:
        """Ask all to stop, and wait until they have; kill those that do not."""
        for process in self._places.values():
            process.terminate()
        end = time.monotonic() + GOODBYE_SECONDS
        for process in self._places.values():
            try:
                process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _start(self, place: int) -> subprocess.Popen[bytes]:
        folder = self._place_folder(place)
        folder.mkdir(exist_ok=True)
        settings = replace(self._job.settings, device=_device(self._job.settings.device, place))
        job = {"settings": asdict(settings), "study": self._job.study, "deadline": self._job.deadline}
        (folder / JOB_FILE).write_text(json.dumps(job))
        command = [sys.executable, "-m", "hpt_mlflow.stages.trials", str(folder)]
        return subprocess.Popen(command, env=self._variables, stdin=subprocess.DEVNULL)

    def _look_into(self, code: int, folder: Path) -> None:
        """Go on after a worker has ended, or not."""
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        said = folder / ERROR_FILE
        if said.exists():
            raise HptError(said.read_text())
        if code:
            self.deaths += 1
        if self.deaths >= MOST_DEATHS:
            raise HptError(
                f"{self.deaths} workers have ended with exit code {code} without having finished a trial; see their "
                "messages above, and whether the machine has memory for --workers so many"
            )

    def _place_folder(self, place: int) -> Path:
        return self._folder / str(place)


@contextmanager
def _crew(job: Job, run_id: str) -> Iterator[_Crew]:
    with tempfile.TemporaryDirectory(prefix="hpt-") as folder:
        crew = _Crew(job, run_id, Path(folder))
        try:
            yield crew
        finally:
            crew.end()


def _device(device: str, place: int) -> str:
    """A GPU for each worker, in turn, where there are several."""
    count = torch.cuda.device_count() if device in ("auto", "cuda") else 0
    return f"cuda:{place % count}" if count > 1 else device


def _is_alive(trial: FrozenTrial) -> bool:
    started = trial.datetime_start
    age = (datetime.now(started.tzinfo) - started).total_seconds() if started else 0.0
    return is_worked_on(trial.user_attrs.get(RUN, ""), trial.user_attrs.get(OWNER, ""), age)
