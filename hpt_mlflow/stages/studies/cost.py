"""How long a study would take, from short trials of its trainings."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from hpt_mlflow.data.dataset import Dataset
from hpt_mlflow.evaluation.drawing import wanted_labels
from hpt_mlflow.evaluation.protocols import load_protocol
from hpt_mlflow.experiments.chains import Chains
from hpt_mlflow.experiments.plan import Job
from hpt_mlflow.group import Group
from hpt_mlflow.methods import load_method, options_of
from hpt_mlflow.models.architecture import Architecture
from hpt_mlflow.models.backbone import build_backbone
from hpt_mlflow.settings import StudySettings
from hpt_mlflow.stages.evaluation.task import label_count
from hpt_mlflow.stages.processes.device import resolve_device
from hpt_mlflow.stages.studies.checks import evaluation_settings, fitted_plan, training_settings
from hpt_mlflow.stages.training.prepare import prepare
from hpt_mlflow.stages.training.resolve import split_for
from hpt_mlflow.stages.training.start import Start
from hpt_mlflow.training.milestones import parse_milestones

WARM_UP_STEPS, TRIED_STEPS = 1, 3
# Longer than any trial, so that precisions are tried as for a long training.
LONG = 10**6


def seconds_of(
    jobs: Sequence[Job],
    settings: StudySettings,
    datasets: Mapping[str, Dataset],
    network: Architecture,
) -> float:
    """About how many seconds jobs would take on this machine, `at_once` side by side.

    A few steps of a training on the target are tried, with its share of the cores. Every other job is taken to need as
    long per pass of an image through the network, and the time that a process needs to start.

    Args:
        datasets: by address.
        network: of all trainings.
    """
    if not jobs:
        return 0.0
    device = resolve_device(settings.device)
    cores = torch.get_num_threads()
    together = min(settings.at_once, cores if device.type == "cpu" else max(1, torch.cuda.device_count()))
    # On several GPUs each process has its part of a batch; on a CPU all processes share the cores.
    parts = settings.nproc if device.type == "cuda" else 1
    with _threads(max(1, cores // settings.at_once)):
        seconds_per_pass = _try(settings, datasets[settings.target], network, parts)
    passes = sum(passes_of(job, datasets[job.settings["data"]], parts) for job in jobs)
    return (len(jobs) * _seconds_to_start() + passes * seconds_per_pass) / together


def _try(settings: StudySettings, dataset: Dataset, network: Architecture, parts: int) -> float:
    """Seconds per image and pass through the network, views included, in a short training on the target.

    Args:
        parts: of a batch, of which one is tried.
    """
    training = training_settings(Chains(settings, settings.seed, images=0, network=network).target_alone())
    plan = fitted_plan(training, dataset)
    batch_size = max(2, plan.batch_size // parts)
    few = min(len(split_for(training, dataset).seen), (WARM_UP_STEPS + TRIED_STEPS) * batch_size)
    # Options of the method as they fit this part of a batch.
    own: dict[str, Any] = dict.fromkeys(options_of(plan.method))
    tried = replace(
        training, batch_size=batch_size, images=str(few), steps=LONG, milestones="100%", compile="off", **own
    )
    work = prepare("pretrain", tried, Start(*build_backbone(network), network), dataset, Group(), None)
    for progress in work.trainer.train(work.batches, 0, report_every=LONG):
        if progress.step == WARM_UP_STEPS:
            _wait_for(work.trainer.device)
            started = time.perf_counter()
        if progress.step == WARM_UP_STEPS + TRIED_STEPS:
            break
    _wait_for(work.trainer.device)
    return (time.perf_counter() - started) / TRIED_STEPS / batch_size / load_method(plan.method).passes


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def passes_of(job: Job, dataset: Dataset, parts: int = 1) -> float:
    """The passes of images through the network in a job; of an evaluation, for all milestones that it evaluates.

    Args:
        parts: of a training, side by side.
    """
    if job.stage != "evaluate":
        plan = fitted_plan(training_settings(job), dataset)
        return job.steps * plan.batch_size * load_method(plan.method).passes / parts
    settings = evaluation_settings(job)
    train = len(dataset.split(settings.split_seed).train)
    count = label_count(settings, train)
    labels = train if count is None else wanted_labels(train, count)
    learning = load_protocol(settings.protocol).passes(labels, settings.steps)
    features = len(dataset) * (1 + settings.untrained)
    milestones = job.start.settings["milestones"] if job.start and job.whole_run else "100%"
    return (learning + features) * len(parse_milestones(milestones, job.start.steps if job.start else 1))


def _seconds_to_start() -> float:
    """Seconds that a process of a stage takes to import everything, measured."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import hpt_mlflow.stages.adapt, hpt_mlflow.stages.evaluate"], check=True)
    return time.perf_counter() - started


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Limit the number of threads in the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
