"""The jobs of a study: finished ones are reused, the others run in processes, several at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hpt_mlflow.data.dataset import Dataset
from hpt_mlflow.errors import HptError
from hpt_mlflow.experiments.plan import START_SETTING, Job
from hpt_mlflow.settings import EvaluateSettings
from hpt_mlflow.stages import STAGES
from hpt_mlflow.stages.evaluation.work import addresses_of, evaluation_identity
from hpt_mlflow.stages.identify import identify
from hpt_mlflow.stages.processes.children import STAGE_PROCESS, Ended, children
from hpt_mlflow.stages.processes.device import device_in_turn
from hpt_mlflow.tracking import tags as tag
from hpt_mlflow.tracking.identity import Identity
from hpt_mlflow.tracking.runs.reuse import finished_run

POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Done:
    """A finished job.

    Attributes:
        model: that it made or evaluated.
        reused: whether it was finished before.
    """

    run_id: str
    model: str
    reused: bool


@dataclass(frozen=True)
class Workplace:
    """What all jobs of a study share.

    Attributes:
        datasets: by address.
        run_id: the run that theirs are nested in.
        at_once: how many run side by side.
        reuse: whether finished runs are reused.
    """

    datasets: Mapping[str, Dataset]
    run_id: str
    at_once: int
    reuse: bool


def run_jobs(jobs: list[Job], place: Workplace, on_done: Callable[[Job, Done, int], object]) -> dict[Job, Done]:
    """Run all jobs, each when the one that it starts from is done.

    Args:
        jobs: each behind the one that it starts from.
        on_done: called with each job, its result and the number of jobs that are done.

    Raises:
        HptError: a job failed; the others at work are interrupted, and resume with the next call.
        KeyboardInterrupt: a job was interrupted.
    """
    done: dict[Job, Done] = {}
    waiting = list(jobs)
    # Jobs without a finished run: the server is asked once for each.
    missing: set[Job] = set()
    # By the slot of their process.
    at_work: dict[int, Job] = {}

    def finish(job: Job, result: Done) -> None:
        done[job] = result
        on_done(job, result, len(done))

    with children(STAGE_PROCESS, place.at_once, place.run_id) as processes:
        while waiting or at_work:
            for job in [job for job in waiting if job.start is None or job.start in done]:
                settings = _settings(job, done)
                if job not in missing and (earlier := _finished_before(job, settings, place)):
                    waiting.remove(job)
                    finish(job, earlier)
                    continue
                missing.add(job)
                if processes.free:
                    waiting.remove(job)
                    slot = processes.free[0]
                    at_work[slot] = job
                    processes.start(slot, _message(job, settings, slot))
            for ended in processes.ended():
                job = at_work.pop(ended.place)
                finish(job, _result(job, ended))
            time.sleep(POLL_SECONDS if at_work else 0)
    return done


def _message(job: Job, settings: dict[str, Any], slot: int) -> dict[str, Any]:
    """What the process of a job needs: its settings, with a GPU in turn."""
    device = device_in_turn(settings.get("device", "auto"), slot, settings.get("nproc", 1))
    return {"stage": job.stage, "settings": settings | {"device": device}}


def _result(job: Job, ended: Ended) -> Done:
    """The result of a job whose process has ended.

    Raises:
        HptError: the error of the job.
    """
    if ended.code:
        raise HptError(f"{job.name}: {ended.error or f'its process {ended.how}'}")
    return Done(ended.result["run_id"], ended.result["model_uri"], reused=False)


def done_before(jobs: list[Job], place: Workplace) -> dict[Job, Done]:
    """The jobs that are finished already.

    Args:
        jobs: each behind the one that it starts from.
    """
    done: dict[Job, Done] = {}
    for job in jobs:
        is_ready = job.start is None or job.start in done
        if is_ready and (earlier := _finished_before(job, _settings(job, done), place)):
            done[job] = earlier
    return done


def _settings(job: Job, done: Mapping[Job, Done]) -> dict[str, Any]:
    """The settings of a job, with the model or run that it starts from."""
    if job.start is None:
        return job.settings
    start = done[job.start]
    return job.settings | {START_SETTING[job.stage]: f"runs:/{start.run_id}" if job.whole_run else start.model}


def _finished_before(job: Job, settings: dict[str, Any], place: Workplace) -> Done | None:
    """The job as an earlier run did it, whatever run that was nested in."""
    run = finished_run(_identity(job, settings, place.datasets)) if place.reuse else None
    if run is None:
        return None
    # Jobs that this study finished before it was interrupted are its own.
    return Done(run.info.run_id, run.data.tags.get(tag.MODEL, ""), run.data.tags.get(tag.PARENT_RUN) != place.run_id)


def _identity(job: Job, values: dict[str, Any], datasets: Mapping[str, Dataset]) -> Identity:
    settings, dataset = STAGES[job.stage].settings(**values), datasets[values["data"]]
    if isinstance(settings, EvaluateSettings):
        return evaluation_identity(settings, dataset, addresses_of(settings.model))
    return identify(job.stage, settings, [dataset], values.get("parent"))
