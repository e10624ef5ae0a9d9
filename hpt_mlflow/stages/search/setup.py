"""What all trials of a study share: read, checked and resolved once, the same in every worker."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import torch

from hpt_mlflow.augment.crop import smallest_useful_side
from hpt_mlflow.augment.subset import parse_strengths, parse_subset
from hpt_mlflow.data.batches import default_workers
from hpt_mlflow.data.dataset import Dataset, content_digest
from hpt_mlflow.data.images import Images
from hpt_mlflow.data.labels import check_labels
from hpt_mlflow.data.split import Split
from hpt_mlflow.data.statistics import ChannelStatistics, kept_channel_statistics
from hpt_mlflow.errors import HptError
from hpt_mlflow.evaluation.features import FeatureReader
from hpt_mlflow.evaluation.objectives import NEED_LABELS, Judge, make_judge
from hpt_mlflow.settings import TuneSettings
from hpt_mlflow.stages.identify import identify
from hpt_mlflow.stages.processes.device import resolve_device
from hpt_mlflow.stages.training.resolve import length_of, resolve_training, split_for
from hpt_mlflow.stages.training.start import Start, start_from_parent
from hpt_mlflow.tracking.models.store import FoundModel
from hpt_mlflow.training.arithmetic import choose_arithmetic
from hpt_mlflow.training.plan import Plan
from hpt_mlflow.tuning.pruning import rungs
from hpt_mlflow.tuning.space import Space

# Where a trial is first judged, as a share of its length. With a reduction of 4, halving then takes an eighth of the
# steps of training all subsets: 32 go to 1/32, 8 of them to 1/8, 2 to 1/2, and one to the end.
FIRST_RUNG = 1 / 32
# Settings that say how long, where and how a search goes on, not what a trial is.
FREE = frozenset(
    [
        *("study", "storage", "trials", "budget_steps", "minutes", "workers", "steps", "adapt_winner", "compile"),
        *("milestones", "model_name", "alias", "precision"),
    ]
)


@dataclass(frozen=True)
class TrialSetup:
    """What a trial needs but for its subset.

    Attributes:
        plan: of a whole trial.
        rungs: steps at which a trial is scored; the last is its length.
        objective: probe, knn, rotation or infonce.
        judge: gives the scores; None for infonce, which training gives.
        workers: processes that decode images.
        identity: what makes another study the same one.
    """

    dataset: Dataset
    split: Split
    images: Images
    statistics: ChannelStatistics
    start: Start
    plan: Plan
    rungs: tuple[int, ...]
    space: Space
    objective: str
    judge: Judge | None
    device: torch.device
    workers: int
    identity: dict[str, Any]


def set_up_trials(settings: TuneSettings, dataset: Dataset, parent: FoundModel) -> TrialSetup:
    """Resolve and check everything, and decode what fits into memory.

    Raises:
        HptError: the settings do not fit the parent, the dataset or each other.
    """
    device = resolve_device(settings.device)
    split = split_for(settings, dataset)
    start = start_from_parent(settings, parent)
    space = Space(parse_subset(settings.augment), settings.tune_strengths, parse_strengths(settings.strengths or ""))
    fewest = len(space.paper_subsets)
    if settings.trials is not None and settings.trials < fewest:
        raise HptError(
            f"trials: {settings.trials} are fewer than the {fewest} subsets of the paper, which are always among them; "
            f"use {fewest} or more"
        )
    objective = _objective(settings, dataset, split)
    steps = settings.trial_steps or max(1, length_of(settings) // 2)
    first = settings.first_rung or max(1, round(FIRST_RUNG * steps))
    if first > steps:
        raise HptError(f"first_rung: {first} is beyond the {steps} steps of a trial; lower it, or raise trial_steps")
    side = smallest_useful_side(start.architecture.image_size, space.smallest_crop_scale)
    images = Images(dataset, split.seen, side, settings.strict, cache_gib=settings.cache_gib)
    # Warm-up and cosine are those of a trial of this length.
    plan = resolve_training(replace(settings, steps=steps), dataset.name, len(images.indices))
    arithmetic = choose_arithmetic(
        settings.precision,
        settings.compile,
        start.backbone,
        start.architecture.image_size,
        plan.batch_size,
        steps,
        device,
    )
    statistics = kept_channel_statistics(images)
    reader = FeatureReader(images, start.architecture.image_size, statistics, device)
    return TrialSetup(
        dataset=dataset,
        split=split,
        images=images,
        statistics=statistics,
        start=start,
        plan=replace(plan, precision=arithmetic.precision, compile=arithmetic.compile),
        rungs=rungs(steps, first, settings.reduction),
        space=space,
        objective=objective,
        judge=None if objective == "infonce" else make_judge(objective, reader, split, dataset.labels),
        device=device,
        workers=default_workers(images, device, settings.workers),
        identity=_identity(settings, dataset, parent, objective, steps, first),
    )


def search_name(settings: TuneSettings, dataset: Dataset) -> str:
    """The name of the study where the user gives none: the same for the same command, whatever its budget."""
    if settings.study:
        return settings.study
    fields = identify("tune", settings, [dataset], settings.parent).fields
    # The length of a trial comes from that of the whole where it is not said.
    free = FREE if settings.trial_steps else FREE - {"steps"}
    decisive = {name: value for name, value in fields.items() if name not in free}
    return f"{dataset.name}-{hashlib.sha256(repr(sorted(decisive.items())).encode()).hexdigest()[:8]}"


def _objective(settings: TuneSettings, dataset: Dataset, split: Split) -> str:
    objective = settings.objective
    if objective == "auto":
        objective = "rotation" if dataset.labels is None else "probe"
    if objective in NEED_LABELS and dataset.labels is not None:
        check_labels(dataset, split)
    if objective == "infonce" and settings.update == "bn-stats":
        raise HptError("objective: infonce is the training loss, and update=bn-stats has none; use another objective")
    return objective


def _identity(
    settings: TuneSettings, dataset: Dataset, parent: FoundModel, objective: str, steps: int, first: int
) -> dict[str, Any]:
    """What decides on the scores of a study."""
    fields = identify("tune", settings, [dataset], parent.uri).fields
    resolved: dict[str, Any] = {"objective": objective, "trial_steps": steps, "first_rung": first}
    resolved["augment"] = ",".join(parse_subset(settings.augment))
    decisive = {name: value for name, value in fields.items() if name not in FREE}
    weights = content_digest(*(tensor.numpy() for tensor in parent.backbone.state_dict().values()))
    return decisive | resolved | {"weights of the parent": weights}
