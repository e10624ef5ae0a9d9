"""How long a study would take, from short trials of its trainings."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch

from hpt_mlflow.data.dataset import Dataset
from hpt_mlflow.evaluation.drawing import wanted_labels
from hpt_mlflow.evaluation.protocols import load_protocol
from hpt_mlflow.experiments.chains import Chains
from hpt_mlflow.experiments.plan import Job
from hpt_mlflow.group import Group
from hpt_mlflow.methods import load_method
from hpt_mlflow.models.architecture import Architecture
from hpt_mlflow.models.backbone import build_backbone
from hpt_mlflow.settings import AdaptSettings, PretrainSettings, StudySettings
from hpt_mlflow.stages.evaluation.task import label_count
from hpt_mlflow.stages.processes.device import resolve_device
from hpt_mlflow.stages.studies.checks import evaluation_settings, fitted_plan, training_settings
from hpt_mlflow.stages.training.milestones import parse_milestones
from hpt_mlflow.stages.training.prepare import prepare
from hpt_mlflow.stages.training.resolve import split_for
from hpt_mlflow.stages.training.start import Start

WARM_UP_STEPS, TRIED_STEPS = 1, 3
# Longer than any trial, so that precisions are tried as for a long training.
LONG = 10**6


class Kind(NamedTuple):
    """Trainings whose steps take equally long."""

    data: str
    update: str
    batch_size: int
    options: tuple[tuple[str, float], ...]


@dataclass
class Trials:
    """Trials of trainings on this machine.

    Attributes:
        datasets: by address.
        network: of all trainings.
        seconds: of a step, by kind of training.
    """

    device: torch.device
    datasets: Mapping[str, Dataset]
    network: Architecture
    seconds: dict[Kind, float] = field(default_factory=dict)

    def seconds_per_step(self, job: Job) -> float:
        """The seconds per step of a training; each kind is tried once."""
        settings, dataset = training_settings(job), self.datasets[job.settings["data"]]
        plan = fitted_plan(settings, dataset)
        kind = Kind(settings.data, plan.update, plan.batch_size, tuple(sorted(plan.options.items())))
        if kind not in self.seconds:
            # On several GPUs each process has its part of a batch; on a CPU all processes share the cores.
            parts = settings.nproc if self.device.type == "cuda" else 1
            options = load_method(plan.method).share_options(plan.options, parts)
            part = replace(settings, batch_size=plan.batch_size // parts, **options)
            self.seconds[kind] = _try(job.stage, part, dataset, self.network)
        return self.seconds[kind]

    def seconds_per_pass(self, job: Job) -> float:
        """The seconds per image and pass through the network, from a training of all weights."""
        plan = fitted_plan(training_settings(job), self.datasets[job.settings["data"]])
        return self.seconds_per_step(job) / plan.batch_size / load_method(plan.method).passes


def seconds_of(
    jobs: Sequence[Job],
    settings: StudySettings,
    datasets: Mapping[str, Dataset],
    network: Architecture,
) -> float:
    """About how many seconds jobs would take on this machine, `at_once` side by side.

    A few steps of each kind of training are tried, on its images, with its share of the cores. An evaluation is
    estimated by its passes through the network, as many seconds each as in a training of all weights on the target.
    Every job takes the time that a process needs to start, too.

    Args:
        datasets: by address.
        network: of all trainings.
    """
    device = resolve_device(settings.device)
    cores = torch.get_num_threads()
    together = min(settings.at_once, cores if device.type == "cpu" else max(1, torch.cuda.device_count()))
    seconds = len(jobs) * _seconds_to_start() if jobs else 0.0
    with _threads(max(1, cores // settings.at_once)):
        trials = Trials(device, datasets, network)
        training = Chains(settings, settings.seed, images=0, network=network).target_alone()
        for job in jobs:
            if job.stage == "evaluate":
                seconds += passes_of(job, datasets[job.settings["data"]]) * trials.seconds_per_pass(training)
            else:
                seconds += job.steps * trials.seconds_per_step(job)
    return seconds / together


def _try(stage: str, settings: PretrainSettings | AdaptSettings, dataset: Dataset, network: Architecture) -> float:
    """Seconds per optimiser step, views included, in a short training from random weights."""
    backbone, feature_size = build_backbone(network)
    assert settings.batch_size is not None
    few = min(len(split_for(settings, dataset).seen), (WARM_UP_STEPS + TRIED_STEPS) * settings.batch_size)
    tried = replace(settings, images=str(few), steps=LONG, milestones="100%", compile="off", workers=0)
    work = prepare(stage, tried, Start(backbone, feature_size, network), dataset, Group(), None)
    for progress in work.trainer.train(work.batches, 0, report_every=LONG):
        if progress.step == WARM_UP_STEPS:
            _wait_for(work.trainer.device)
            started = time.perf_counter()
        if progress.step == WARM_UP_STEPS + TRIED_STEPS:
            break
    _wait_for(work.trainer.device)
    return (time.perf_counter() - started) / TRIED_STEPS


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def passes_of(job: Job, dataset: Dataset) -> float:
    """The passes of images through the network in an evaluation, for all milestones that it evaluates."""
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
