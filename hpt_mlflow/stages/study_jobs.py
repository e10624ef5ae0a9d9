"""The jobs of an experiment: what is done is found, the rest runs in processes of its own, some at once."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from hpt_mlflow.data.dataset import Dataset
from hpt_mlflow.errors import HptError
from hpt_mlflow.experiments.plan import FROM, Job
from hpt_mlflow.options import Settings
from hpt_mlflow.settings import AdaptSettings, EvaluateSettings, PretrainSettings
from hpt_mlflow.signals import INTERRUPTED, ignore_signals
from hpt_mlflow.stages.children import be_child, end_children, error_of, result_of_child, start_child
from hpt_mlflow.stages.device import device_in_turn
from hpt_mlflow.stages.evaluate import addresses_of, evaluation_identity
from hpt_mlflow.stages.launch import child_variables
from hpt_mlflow.stages.planning import identify
from hpt_mlflow.tracking.finished import finished_run
from hpt_mlflow.tracking.identity import PARENT_TAG, Identity

POLL_SECONDS = 0.2
KINDS: dict[str, type[Settings]] = {"pretrain": PretrainSettings, "adapt": AdaptSettings, "evaluate": EvaluateSettings}


@dataclass(frozen=True)
class Done:
    """A job that is done.

    Attributes:
        model: that it has made, or evaluated.
        reused: whether it had been done before.
    """

    run_id: str
    model: str
    reused: bool


@dataclass(frozen=True)
class Workplace:
    """What all jobs of an experiment share.

    Attributes:
        datasets: by address.
        run_id: that theirs are nested in.
        at_once: how many run side by side.
        reuse: whether what was done before counts.
    """

    datasets: Mapping[str, Dataset]
    run_id: str
    at_once: int
    reuse: bool


def run_jobs(jobs: list[Job], place: Workplace, on_done: Callable[[Job, Done, int], object]) -> dict[Job, Done]:
    """Do all jobs, each when the one that it starts from is done.

    Args:
        jobs: each behind the one that it starts from.
        on_done: is called with each, and with how many are done.

    Raises:
        HptError: what a job cannot do; those beside it are interrupted, and go on with the next call.
        KeyboardInterrupt: a job was interrupted.
    """
    done: dict[Job, Done] = {}
    waiting = list(jobs)
    # Jobs that were looked for and are not there: the server is asked once for each.
    missing: set[Job] = set()

    def finish(job: Job, result: Done) -> None:
        done[job] = result
        on_done(job, result, len(done))

    with _processes(place) as running:
        while waiting or running:
            for job in [job for job in waiting if job.start is None or job.start in done]:
                said = _settings(job, done)
                if job not in missing and (found := _found(job, said, place)):
                    waiting.remove(job)
                    finish(job, found)
                    continue
                missing.add(job)
                if len(running) < place.at_once:
                    waiting.remove(job)
                    running.start(job, said)
            for job, result in running.ended():
                finish(job, result)
            time.sleep(POLL_SECONDS if running else 0)
    return done


def done_before(jobs: list[Job], place: Workplace) -> dict[Job, Done]:
    """Those of the jobs that are there already.

    Args:
        jobs: each behind the one that it starts from.
    """
    done: dict[Job, Done] = {}
    for job in jobs:
        is_ready = job.start is None or job.start in done
        if is_ready and (found := _found(job, _settings(job, done), place)):
            done[job] = found
    return done


def _settings(job: Job, done: Mapping[Job, Done]) -> dict[str, Any]:
    """The settings of a job, with what it starts from as it is now known."""
    if job.start is None:
        return job.said
    start = done[job.start]
    return job.said | {FROM[job.stage]: f"runs:/{start.run_id}" if job.whole_run else start.model}


def _found(job: Job, said: dict[str, Any], place: Workplace) -> Done | None:
    """What was done before, in whatever run."""
    run = finished_run(_identity(job, said, place.datasets)) if place.reuse else None
    if run is None:
        return None
    # What an interrupted study had done itself is its own.
    return Done(run.info.run_id, run.data.tags.get("hpt.model", ""), run.data.tags.get(PARENT_TAG) != place.run_id)


def _identity(job: Job, said: dict[str, Any], datasets: Mapping[str, Dataset]) -> Identity:
    settings, dataset = KINDS[job.stage](**said), datasets[said["data"]]
    if isinstance(settings, EvaluateSettings):
        return evaluation_identity(settings, dataset, addresses_of(settings.model))
    return identify(job.stage, settings, [dataset], said.get("parent"))


class _Running:
    """The processes of jobs that are at work."""

    def __init__(self, place: Workplace, folder: Path) -> None:
        self._folder = folder
        self._at_once = place.at_once
        inherited = {name: value for name, value in os.environ.items() if name != "MLFLOW_RUN_ID"}
        self._variables = inherited | child_variables(place.run_id, place.at_once)
        self._jobs: dict[int, tuple[Job, subprocess.Popen[bytes]]] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    def start(self, job: Job, said: dict[str, Any]) -> None:
        """Begin with a job."""
        place = next(place for place in range(self._at_once) if place not in self._jobs)
        settings = said | {"device": device_in_turn(said.get("device", "auto"), place, said.get("nproc", 1))}
        told = {"stage": job.stage, "settings": settings}
        process = start_child("hpt_mlflow.stages.study_jobs", self._place(place), told, self._variables)
        self._jobs[place] = (job, process)

    def ended(self) -> Iterator[tuple[Job, Done]]:
        """Those that are done since the last look; raises what one of them cannot do."""
        for place, (job, process) in list(self._jobs.items()):
            code = process.poll()
            if code is None:
                continue
            del self._jobs[place]
            if code == INTERRUPTED:
                raise KeyboardInterrupt
            if code:
                why = error_of(self._place(place)) or f"its process ended with exit code {code}; see its messages above"
                raise HptError(f"{job.name}: {why}")
            result = result_of_child(self._place(place))
            yield job, Done(result["run_id"], result["model_uri"], reused=False)

    def end(self) -> None:
        """Interrupt all."""
        end_children(process for _, process in self._jobs.values())

    def _place(self, place: int) -> Path:
        return self._folder / str(place)


@contextmanager
def _processes(place: Workplace) -> Iterator[_Running]:
    with tempfile.TemporaryDirectory(prefix="hpt-") as folder:
        running = _Running(place, Path(folder))
        try:
            yield running
        except KeyboardInterrupt:
            # `mlflow run` answers Ctrl-C by SIGTERM as well, which must not cut off what follows.
            ignore_signals()
            raise
        finally:
            running.end()


def _work(said: Mapping[str, Any]) -> dict[str, Any]:
    """Do a job."""
    stage = said["stage"]
    result = getattr(import_module(f"hpt_mlflow.stages.{stage}"), stage)(**said["settings"])
    return asdict(result)


if __name__ == "__main__":
    sys.exit(be_child(Path(sys.argv[1]), _work))
