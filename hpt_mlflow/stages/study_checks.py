"""What a study refuses at once, since one of its stages would refuse it after hours."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache

import numpy as np

from hpt_mlflow.data.dataset import Dataset
from hpt_mlflow.data.fingerprints import UNKNOWN, fingerprints
from hpt_mlflow.data.labels import check_labels
from hpt_mlflow.errors import HptError
from hpt_mlflow.evaluation.drawing import draw_labels
from hpt_mlflow.experiments.plan import ExperimentPlan, Job
from hpt_mlflow.models.backbone import batch_norms, build_backbone
from hpt_mlflow.settings import AdaptSettings, EvaluateSettings, PretrainSettings
from hpt_mlflow.stages.milestones import parse_milestones
from hpt_mlflow.stages.planning import fit_plan, split_for
from hpt_mlflow.stages.task import SEEN_LIMIT, label_count
from hpt_mlflow.training.plan import PRESETS

# Stands for what a job starts from, which is not there yet.
TO_BE_MADE = "models:/to-be-made/1"


def check_jobs(plan: ExperimentPlan, datasets: Mapping[str, Dataset]) -> None:
    """Check what can be known of the jobs before any of them is run.

    Args:
        datasets: by address.

    Raises:
        HptError: steps, sizes or labels that there are not so many of; or test images among those to learn from.
    """
    for job in plan.jobs:
        dataset = datasets[job.said["data"]]
        try:
            if job.stage == "evaluate":
                _check_evaluation(EvaluateSettings(**{"model": TO_BE_MADE} | job.said), dataset)
            elif job.stage == "adapt":
                _check_training(AdaptSettings(**{"parent": TO_BE_MADE} | job.said), dataset)
            else:
                _check_training(PretrainSettings(**job.said), dataset)
        except HptError as error:
            # Its own name for what the stages call images.
            said = re.sub("^images:", "amounts:", str(error)) if plan.study == "data-amount" else str(error)
            raise HptError(said) from error
    _check_unseen((point.evaluation for point in plan.points), datasets)


def check_batch_norms(arch: str, image_size: int, small_stem: bool) -> None:
    """Refuse a network without what Base and HPT-BN change on the target.

    Raises:
        HptError: it has no BatchNorm layers, or cannot be built.
    """
    backbone, _ = build_backbone(arch, image_size, small_stem)
    if not batch_norms(backbone):
        raise HptError(f"arch: {arch} has no BatchNorm layers, which Base and HPT-BN are about; use another one")


def _check_training(settings: PretrainSettings | AdaptSettings, dataset: Dataset) -> None:
    assert settings.steps is not None
    parse_milestones(settings.milestones, settings.steps)
    sizes = {name: getattr(settings, name) for name in ("batch_size", "bn_splits") if getattr(settings, name)}
    plan = replace(PRESETS[settings.preset].plan, **sizes)
    fit_plan(plan, settings, dataset.name, len(split_for(settings, dataset).seen), settings.nproc)


def _check_evaluation(settings: EvaluateSettings, dataset: Dataset) -> None:
    split = dataset.split(settings.split_seed)
    labels = check_labels(dataset, split)[split.train]
    count = label_count(settings, len(labels))
    if count is not None:
        draw_labels(labels, count, settings.seed)


def _check_unseen(evaluations: Iterable[Job], datasets: Mapping[str, Dataset]) -> None:
    """Refuse another dataset to learn from that has test images of the target in it."""

    @cache
    def content(address: str, seed: int, part: str) -> np.ndarray:
        found = fingerprints(datasets[address], getattr(datasets[address].split(seed), part))
        return found[found != UNKNOWN]

    for evaluation in evaluations:
        target, seed = evaluation.said["data"], evaluation.said["split_seed"]
        for address in _learned_from(evaluation.start):
            # Of the same images, training keeps to the same split.
            if datasets[address].digest == datasets[target].digest:
                continue
            known = content(target, seed, "test")
            found = int(np.isin(known, content(address, seed, "seen")).sum())
            if found > SEEN_LIMIT * len(known):
                raise HptError(
                    f"target: {found} of {len(known)} test images of {datasets[target].name} are also among the images "
                    f"of {datasets[address].name} that training may see; take them out of it"
                )


def _learned_from(job: Job | None) -> list[str]:
    """The addresses of all datasets behind a model."""
    return [job.said["data"], *_learned_from(job.start)] if job else []
