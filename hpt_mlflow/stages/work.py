"""All that a training needs, resolved, checked and ready before its run is started."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial

import torch

from hpt_mlflow.augment.crop import smallest_useful_side
from hpt_mlflow.data.batches import ViewBatches, default_workers
from hpt_mlflow.data.dataset import Dataset
from hpt_mlflow.data.images import Images
from hpt_mlflow.data.split import Split
from hpt_mlflow.data.statistics import ChannelStatistics, kept_channel_statistics
from hpt_mlflow.models.checkpoint import BackboneCard
from hpt_mlflow.report.card import training_card
from hpt_mlflow.settings import TrainingSettings
from hpt_mlflow.stages.device import resolve_device
from hpt_mlflow.stages.milestones import parse_milestones
from hpt_mlflow.stages.planning import Start, fit_plan, make_plan
from hpt_mlflow.tracking.earlier import Earlier
from hpt_mlflow.tracking.states import newest_state
from hpt_mlflow.training.loop import Trainer
from hpt_mlflow.training.plan import Plan
from hpt_mlflow.training.precision import resolve_precision


@dataclass(frozen=True)
class Work:
    """All that a training needs, checked and ready.

    Attributes:
        settings: as the user gave them.
        tags: of the run and of every model in it.
        describe: the run's description, from its result and the address of the registered version.
    """

    title: str
    run_name: str
    settings: TrainingSettings
    params: dict[str, object]
    plan: Plan
    milestones: frozenset[int]
    workers: int
    dataset: Dataset
    split: Split
    images: Images
    statistics: ChannelStatistics
    trainer: Trainer
    batches: ViewBatches
    card: BackboneCard
    tags: dict[str, str]
    describe: Callable[..., str]


def prepare(stage: str, settings: TrainingSettings, start: Start, dataset: Dataset, earlier: Earlier | None) -> Work:
    """Resolve and check everything, decode what fits into memory, and take up the training state of an earlier run."""
    device = resolve_device(settings.device)
    split = dataset.split(settings.split_seed)
    plan = make_plan(settings, start)
    milestones = parse_milestones(settings.milestones, plan.steps)
    smallest_side = smallest_useful_side(start.image_size, plan.strengths.crop_scale)
    images = Images(dataset, split.seen, smallest_side, settings.strict)
    plan = fit_plan(plan, settings, images)
    # A trial might choose another arithmetic than the training began with.
    began_with = earlier.run.data.params.get("settings/precision") if earlier else None
    precision = resolve_precision(
        began_with or plan.precision, start.backbone, start.image_size, plan.batch_size, device
    )
    plan = replace(plan, precision=precision)
    statistics = kept_channel_statistics(f"{dataset.digest}-{settings.split_seed}-{smallest_side}", images.sample)
    workers = default_workers(images, device) if settings.workers is None else settings.workers

    chain = (*start.chain, dataset.name)
    trainer = Trainer(start.backbone, start.feature_size, plan, statistics, device)
    if earlier and (state := newest_state(earlier.run.info.run_id)):
        trainer.restore(state)
        images.report_unreadable(state.unreadable.items())
    return Work(
        title=f"{stage} {dataset.name}",
        run_name=f"{stage} {dataset.name}" + (f" < {start.chain[-1]}" if start.chain else ""),
        settings=settings,
        params=_params(settings, plan, start, workers, device),
        plan=plan,
        milestones=milestones,
        workers=workers,
        dataset=dataset,
        split=split,
        images=images,
        statistics=statistics,
        trainer=trainer,
        batches=ViewBatches(images, plan.batch_size, start.image_size, plan.subset, plan.strengths, plan.seed),
        card=BackboneCard(
            start.arch, start.image_size, start.small_stem, start.feature_size, statistics.mean, statistics.std, chain
        ),
        tags=_tags(stage, chain, plan, start, dataset),
        describe=partial(training_card, chain, dataset, split, plan, start.arch, start.image_size, start.parent),
    )


def _tags(stage: str, chain: tuple[str, ...], plan: Plan, start: Start, dataset: Dataset) -> dict[str, str]:
    tags = {
        "hpt.stage": stage,
        "hpt.chain": " > ".join(chain),
        "hpt.update": plan.update,
        "hpt.dataset_digest": dataset.digest,
    }
    if start.weights:
        return tags | start.weights
    return tags | ({"hpt.parent_model": start.parent} if start.parent else {})


def _params(
    settings: TrainingSettings, plan: Plan, start: Start, workers: int, device: torch.device
) -> dict[str, object]:
    """Every setting as it was resolved."""
    resolved = {
        "arch": start.arch,
        "image_size": start.image_size,
        "small_stem": start.small_stem,
        "workers": workers,
        "device": device,
    }
    return asdict(settings) | plan.as_params() | resolved
