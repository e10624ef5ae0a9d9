"""Checks before a study starts, of what one of its stages would refuse after hours."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np

from hpt_mlflow.data.contents import UNKNOWN
from hpt_mlflow.data.dataset import Dataset
from hpt_mlflow.data.labels import check_labels
from hpt_mlflow.errors import HptError
from hpt_mlflow.evaluation.drawing import draw_labels
from hpt_mlflow.experiments.plan import START_SETTING, Job, StudyPlan
from hpt_mlflow.group import joins_others
from hpt_mlflow.methods import load_method
from hpt_mlflow.models.architecture import Architecture
from hpt_mlflow.models.backbone import batch_norms, build_backbone
from hpt_mlflow.settings import AdaptSettings, EvaluateSettings, PretrainSettings, StudySettings
from hpt_mlflow.stages.evaluation.task import label_count
from hpt_mlflow.stages.evaluation.unseen import SEEN_LIMIT, overlaps
from hpt_mlflow.stages.processes.device import resolve_device
from hpt_mlflow.stages.processes.launch import check_devices
from hpt_mlflow.stages.training.resolve import resolve_local_views, resolve_training, split_for
from hpt_mlflow.training.arithmetic import choose_graph
from hpt_mlflow.training.milestones import parse_milestones
from hpt_mlflow.training.plan import Plan

# In place of the model that a job starts from, which does not exist yet.
TO_BE_MADE = "models:/to-be-made/1"


def check_jobs(
    plan: StudyPlan, datasets: Mapping[str, Dataset], network: Architecture, own_names: Mapping[str, str]
) -> None:
    """Check what can be known of the jobs before any of them is run.

    Args:
        datasets: by address.
        network: of all trainings.
        own_names: by the name of a stage's setting, the study's setting that decides it.

    Raises:
        HptError: a stage would refuse steps, sizes, labels or the network; or test images are trained on.
    """
    for job in plan.jobs:
        dataset = datasets[job.settings["data"]]
        try:
            if job.stage == "evaluate":
                _check_evaluation(evaluation_settings(job), dataset)
            else:
                _check_training(training_settings(job), dataset)
        except HptError as error:
            raise (error.about(own_names[error.setting]) if error.setting in own_names else error) from error
    _check_unseen([point.evaluation for point in plan.points], datasets)
    _check_sizes({job.settings["method"] for job in plan.jobs if "method" in job.settings}, network)
    if any(job.settings.get("update", "all") != "all" for job in plan.jobs):
        _check_batch_norms(network)


def training_settings(job: Job) -> PretrainSettings | AdaptSettings:
    """The settings of a training whose parent may not exist yet."""
    if job.stage == "adapt":
        return AdaptSettings(**{"parent": TO_BE_MADE} | job.settings)
    return PretrainSettings(**job.settings)


def evaluation_settings(job: Job) -> EvaluateSettings:
    """The settings of an evaluation whose model may not exist yet."""
    return EvaluateSettings(**{"model": TO_BE_MADE} | job.settings)


def fitted_plan(settings: PretrainSettings | AdaptSettings, dataset: Dataset) -> Plan:
    """How a training would go; raises HptError if the dataset has too few images for the user's settings."""
    return resolve_training(settings, dataset.name, len(split_for(settings, dataset).seen), settings.nproc)


def check_processes(settings: StudySettings) -> None:
    """Raise HptError if the processes cannot have their devices, or do not belong to this study alone."""
    if joins_others():
        raise HptError(
            "study starts processes itself",
            "use --at-once, or --nproc for each training, without torchrun and WORLD_SIZE",
        )
    device = resolve_device(settings.device)
    if settings.nproc > 1:
        check_devices(settings)
        if device.type == "cuda" and settings.at_once > 1:
            problem = f"{settings.at_once} trainings of {settings.nproc} processes would share their GPUs"
            raise HptError(problem, "use at_once 1, or nproc 1", setting="at_once")


def _check_batch_norms(network: Architecture) -> None:
    """Raise HptError if the network has nothing that Base and HPT-BN change on the target, or cannot be built."""
    backbone, _ = build_backbone(network)
    if not batch_norms(backbone):
        problem = f"{network.name} has no BatchNorm layers, the only ones that Base and HPT-BN change"
        raise HptError(problem, "use another one", setting="arch")


def _check_sizes(methods: Collection[str], network: Architecture) -> None:
    """Raise HptError if a method has views of a size that the network cannot take."""
    for method in methods:
        if load_method(method).local_views:
            resolve_local_views(method, build_backbone(network)[0], network)


def _check_training(settings: PretrainSettings | AdaptSettings, dataset: Dataset) -> None:
    assert settings.steps is not None
    parse_milestones(settings.milestones, settings.steps)
    plan = replace(fitted_plan(settings, dataset), compile=settings.compile == "on")
    choose_graph(settings.cuda_graph, plan, resolve_device(settings.device), settings.nproc)


def _check_evaluation(settings: EvaluateSettings, dataset: Dataset) -> None:
    split = dataset.split(settings.split_seed)
    labels = check_labels(dataset, split)[split.train]
    count = label_count(settings, len(labels))
    if count is not None:
        draw_labels(labels, count, settings.seed)


def _check_unseen(evaluations: Sequence[Job], datasets: Mapping[str, Dataset]) -> None:
    """Raise HptError if other datasets contain test images of the target, or a registered Base has learned from them.

    Args:
        evaluations: all on the same target.
    """
    target = datasets[evaluations[0].settings["data"]]
    learned_from = {address for evaluation in evaluations for address in _learned_from(evaluation.start)}
    bases = {base for evaluation in evaluations if (base := _given_model(evaluation))}
    for seed in sorted({evaluation.settings["split_seed"] for evaluation in evaluations}):
        test = target.contents.of(target.split(seed).test)
        for address in sorted(learned_from):
            # Trainings on the same images keep to the same split.
            if datasets[address].digest != target.digest:
                _check_dataset(datasets[address], target, seed, test)
        for base in bases:
            _check_base(base, target, seed, test)


def _check_dataset(dataset: Dataset, target: Dataset, seed: int, test: np.ndarray) -> None:
    known = test[test != UNKNOWN]
    found = int(np.isin(known, dataset.contents.of(dataset.split(seed).seen)).sum())
    if found > SEEN_LIMIT * len(known):
        raise HptError(
            f"{found} of {len(known)} test images of {target.name} are also among the images of {dataset.name} that "
            "training may see",
            f"remove them from {dataset.name}",
            setting="target",
        )


def _check_base(base: str, target: Dataset, seed: int, test: np.ndarray) -> None:
    found = overlaps(base, target, test)
    if found.unknown:
        problem = f"whether {base} has learned from test images of {target.name} cannot be checked, because "
        raise HptError(problem + found.unknown, "use another Base, or train this one again", setting="base_model")
    for overlap in found.stages:
        if overlap.too_many:
            stage = overlap.stage
            same_split = f"--seed {stage.split_seed} --seeds 1, by which it was split there, or "
            raise HptError(
                f"{overlap} of {target.name} with seed {seed} were trained on by {stage.stage} {stage.dataset_name} "
                f"(run {stage.run_id})",
                f"use {same_split if overlap.same_dataset else ''}a Base that has not seen them",
                setting="base_model",
            )


def _learned_from(job: Job | None) -> list[str]:
    """The addresses of all datasets behind a model."""
    return [job.settings["data"], *_learned_from(job.start)] if job else []


def _given_model(job: Job) -> str | None:
    """The address of the registered model that a job's chain starts from, or None."""
    return _given_model(job.start) if job.start else job.settings.get(START_SETTING.get(job.stage, ""))
