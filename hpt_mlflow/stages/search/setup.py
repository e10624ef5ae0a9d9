"""What all trials of a search share: read, checked and resolved once, the same in every search worker."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass, replace
from typing import Any

import torch

from hpt_mlflow.augment.multicrop import LocalViews, useful_side
from hpt_mlflow.augment.subset import parse_subset
from hpt_mlflow.data.dataset import Dataset, content_digest
from hpt_mlflow.data.gpu_images import GpuImages
from hpt_mlflow.data.images import Images
from hpt_mlflow.data.labels import check_labels
from hpt_mlflow.data.loading import default_workers
from hpt_mlflow.data.split import Split
from hpt_mlflow.data.statistics import ChannelStatistics, kept_channel_statistics
from hpt_mlflow.errors import HptError
from hpt_mlflow.evaluation.features import FeatureReader
from hpt_mlflow.evaluation.objectives import OBJECTIVES, has_judge
from hpt_mlflow.evaluation.objectives.base import Judge, make_judge
from hpt_mlflow.group import processes_here
from hpt_mlflow.models.backbone import batch_norms
from hpt_mlflow.options import marked
from hpt_mlflow.settings import TuneSettings
from hpt_mlflow.stages.identify import identify
from hpt_mlflow.stages.processes.device import resolve_device
from hpt_mlflow.stages.training.resolve import (
    length_of,
    resolve_local_views,
    resolve_training,
    split_for,
    strengths_of,
)
from hpt_mlflow.stages.training.start import Start, for_channels, start_from_parent
from hpt_mlflow.tracking.models.store import FoundModel
from hpt_mlflow.training.arithmetic import choose_precision, choose_steps
from hpt_mlflow.training.plan import Plan
from hpt_mlflow.tuning.pruning import rungs
from hpt_mlflow.tuning.space import Space

# The first rung as a share of a trial's length. With a reduction of 4, halving then takes an eighth of the steps of
# training all subsets: 32 are trained to 1/32, 8 of them to 1/8, 2 to 1/2, and one to the end.
FIRST_RUNG = 1 / 32


@dataclass(frozen=True)
class TrialSetup:
    """Everything that a trial needs except its subset and strengths.

    Attributes:
        local: small views.
        plan: of a whole trial.
        rungs: steps at which a trial is scored; the last is its length.
        objective: a name of `OBJECTIVES`.
        judge: computes the scores; None for infonce, which is the training loss.
        gpu_images: the same images, where trials are done and their crops are cut on a GPU.
        workers: processes that decode images.
        identity: what decides the scores; a search with another identity is a different search.
    """

    dataset: Dataset
    split: Split
    images: Images
    statistics: ChannelStatistics
    start: Start
    local: LocalViews
    plan: Plan
    rungs: tuple[int, ...]
    space: Space
    objective: str
    judge: Judge | None
    device: torch.device
    gpu_images: GpuImages | None
    workers: int
    identity: dict[str, Any]

    @property
    def chain(self) -> tuple[str, ...]:
        """Names of the datasets behind the backbone of a trial, oldest first."""
        return (*self.start.chain, self.dataset.name)


def set_up_trials(settings: TuneSettings, dataset: Dataset, parent: FoundModel) -> TrialSetup:
    """Resolve and check everything, and decode what fits into memory.

    Raises:
        HptError: the settings do not fit the parent, the dataset or each other.
    """
    device = resolve_device(settings.device)
    split = split_for(settings, dataset)
    start = start_from_parent(settings, parent)
    space = _space(settings)
    objective = _objective(settings, dataset, split)
    steps = settings.trial_steps or max(1, length_of(settings) // 2)
    first_rung = settings.first_rung or max(1, round(FIRST_RUNG * steps))
    if first_rung > steps:
        raise HptError(
            f"{first_rung} exceeds the {steps} steps of a trial", "lower it, or raise trial_steps", setting="first_rung"
        )
    local = resolve_local_views(settings.method, start.backbone, start.architecture)
    smallest = replace(space.strengths, crop_scale=space.smallest_crop_scale)
    side = useful_side(start.architecture.image_size, smallest, local)
    images = Images(dataset, split.seen, side, settings.strict, cache_gib=settings.cache_gib)
    start = for_channels(start, images.pixels.channels, settings.seed)
    # Warm-up and cosine are those of a training of this length.
    plan = resolve_training(
        replace(settings, steps=steps),
        dataset.name,
        len(images.indices),
        origin=start.origin,
        has_batch_norm=bool(batch_norms(start.backbone)),
    )
    plan = replace(plan, precision=choose_precision(settings.precision, device))
    plan = choose_steps(settings.compile, settings.cuda_graph, plan, device, processes=1)
    statistics = kept_channel_statistics(images)
    # In float32, as the processes that share a search may have different devices.
    reader = FeatureReader(images, start.architecture.image_size, statistics, device)
    return TrialSetup(
        dataset=dataset,
        split=split,
        images=images,
        statistics=statistics,
        start=start,
        local=local,
        plan=plan,
        rungs=rungs(steps, first_rung, settings.reduction),
        space=space,
        objective=objective,
        judge=make_judge(objective, reader, split, dataset.labels) if has_judge(objective) else None,
        device=device,
        gpu_images=None,
        workers=default_workers(images, device, processes_here()),
        identity=_identity(settings, dataset, parent, objective, steps, first_rung),
    )


def search_name(settings: TuneSettings, dataset: Dataset) -> str:
    """The name of the Optuna study: the user's, or one that is the same for the same command with any budget."""
    if settings.study:
        return settings.study
    decisive = _decisive(settings, dataset, settings.parent)
    if settings.trial_steps is None:
        # The length of a trial follows from that of the whole training.
        decisive["steps"] = settings.steps
    return f"{dataset.name}-{hashlib.sha256(repr(sorted(decisive.items())).encode()).hexdigest()[:8]}"


def _space(settings: TuneSettings) -> Space:
    space = Space(parse_subset(settings.augment), settings.tune_strengths, strengths_of(settings))
    fewest = len(space.paper_subsets)
    if settings.trials is not None and settings.trials < fewest:
        raise HptError(
            f"{settings.trials} is less than the {fewest} subsets of the paper, which are always tried",
            f"use {fewest} or more",
            setting="trials",
        )
    return space


def _objective(settings: TuneSettings, dataset: Dataset, split: Split) -> str:
    objective = settings.objective
    if objective == "auto":
        objective = "rotation" if dataset.labels is None else "probe"
    if OBJECTIVES[objective].needs_labels and dataset.labels is not None:
        check_labels(dataset, split)
    if not has_judge(objective) and settings.update == "bn-stats":
        raise HptError(
            f"{objective} is the training loss, and update=bn-stats has none",
            "use another objective",
            setting="objective",
        )
    return objective


def _decisive(settings: TuneSettings, dataset: Dataset, parent: str) -> dict[str, Any]:
    """The settings that change the trials, the data and the parent."""
    fields = identify("tune", settings, [dataset], parent).fields
    budget = {entry.name for entry in dataclasses.fields(settings)} - set(marked(settings, "changes_trial"))
    return {name: value for name, value in fields.items() if name not in budget}


def _identity(
    settings: TuneSettings, dataset: Dataset, parent: FoundModel, objective: str, steps: int, first_rung: int
) -> dict[str, Any]:
    return _decisive(settings, dataset, parent.uri) | {
        "objective": objective,
        "trial_steps": steps,
        "first_rung": first_rung,
        "augment": ",".join(parse_subset(settings.augment)),
        "weights of the parent": content_digest(*(tensor.numpy() for tensor in parent.backbone.state_dict().values())),
    }
