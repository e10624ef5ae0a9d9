"""What the two training stages do alike: train, show it, keep milestones, register the result."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import nn

from hpt_mlflow.augment.crop import smallest_useful_side
from hpt_mlflow.augment.subset import parse_subset
from hpt_mlflow.data.batches import ViewBatches, default_workers
from hpt_mlflow.data.dataset import Dataset
from hpt_mlflow.data.images import Images
from hpt_mlflow.data.split import Split
from hpt_mlflow.data.statistics import ChannelStatistics, kept_channel_statistics
from hpt_mlflow.errors import HptError
from hpt_mlflow.evaluation.features import FeatureReader
from hpt_mlflow.evaluation.neighbours import nearest_neighbour_classes
from hpt_mlflow.models.checkpoint import BackboneCard
from hpt_mlflow.report.card import training_card
from hpt_mlflow.report.figures import GRID_IMAGES, learning_curves, views_grid
from hpt_mlflow.settings import AdaptSettings, TrainingSettings
from hpt_mlflow.stages.device import resolve_device
from hpt_mlflow.stages.milestones import parse_milestones
from hpt_mlflow.stages.progress import ProgressDisplay
from hpt_mlflow.stages.result import StageResult
from hpt_mlflow.tracking.dataset_input import log_dataset
from hpt_mlflow.tracking.registry import check_names, log_backbone, register
from hpt_mlflow.tracking.runs import StageRun, stage_run
from hpt_mlflow.training.loop import Trainer
from hpt_mlflow.training.plan import PRESETS, Plan
from hpt_mlflow.training.precision import resolve_precision

# Steps between two reports of metrics: at least 100 reports in a short training, at most 50 steps apart in a long one.
REPORTS = 100
LONGEST_REPORT = 50
# Forward passes for the nearest-neighbour accuracy of all milestones, as a share of the images that training sees: it
# spends about four times a forward pass on each of them, so this is under 1% of its time.
NEIGHBOUR_SHARE = 0.03


@dataclass(frozen=True)
class Start:
    """What a stage starts from.

    Attributes:
        steps, learning_rate: length and peak learning rate of the stage where the user does not say.
        chain: names of the datasets behind the backbone, oldest first.
        parent: address of the model that it came from, or None for random weights.
    """

    backbone: nn.Module
    feature_size: int
    arch: str
    image_size: int
    small_stem: bool
    steps: int
    learning_rate: float
    chain: tuple[str, ...] = ()
    parent: str | None = None


def learn(stage: str, settings: TrainingSettings, start: Start, dataset: Dataset) -> StageResult:
    """Train the backbone that a stage starts from on what it may see of a dataset; log, keep and register it.

    Everything that can be refused is refused before the run is started.
    """
    check_names(settings.model_name, settings.alias)
    device = resolve_device(settings.device)
    split = dataset.split(settings.split_seed)
    plan = _plan(settings, start)
    milestones = parse_milestones(settings.milestones, plan.steps)
    smallest_side = smallest_useful_side(start.image_size, plan.strengths.crop_scale)
    images = Images(dataset, split.seen, smallest_side, settings.strict)
    plan = _fit(plan, settings, images)
    precision = resolve_precision(plan.precision, start.backbone, start.image_size, plan.batch_size, device)
    plan = replace(plan, precision=precision)
    statistics = kept_channel_statistics(f"{dataset.digest}-{settings.split_seed}-{smallest_side}", images.sample)
    workers = default_workers(images, device) if settings.workers is None else settings.workers

    chain = (*start.chain, dataset.name)
    card = BackboneCard(
        start.arch, start.image_size, start.small_stem, start.feature_size, statistics.mean, statistics.std, chain
    )
    tags = _tags(stage, chain, plan, start, dataset)
    describe = partial(training_card, chain, dataset, split, plan, start.arch, start.image_size, start.parent)
    trainer = Trainer(start.backbone, start.feature_size, plan, statistics, device)
    batches = ViewBatches(images, plan.batch_size, start.image_size, plan.subset, plan.strengths, plan.seed)

    with stage_run(_run_name(stage, dataset, start)) as run:
        run.tags(tags)
        run.describe(describe())
        run.params(_params(settings, plan, start, workers, device))
        log_dataset(dataset, split, statistics, "training")
        run.picture(_picture_of_views(trainer, batches), "views.png")

        history: list[tuple[int, dict[str, float]]] = []
        model_id = ""
        with ProgressDisplay(f"{stage} {dataset.name}", plan.steps) as display:
            for step, metrics in trainer.train(
                batches, workers, report_every=max(1, min(LONGEST_REPORT, plan.steps // REPORTS))
            ):
                display.advance(step, metrics)
                if metrics:
                    run.metrics(metrics, step)
                    history.append((step, metrics))
                if step in milestones:
                    model_id = log_backbone(trainer.moco.backbone, replace(card, step=step), tags)
                    quality = _neighbour_accuracy(trainer, images, split, card, milestones)
                    run.metrics(quality, step, model_id)
                    history.append((step, quality))
                if settings.checkpoint_every and step % settings.checkpoint_every == 0:
                    run.folder(trainer.save, "training_state")

        run.picture(learning_curves(history), "learning_curves.png")
        history.append((plan.steps, report_unreadable(run, images, plan.steps)))
        result = {name: value for _, metrics in history for name, value in metrics.items()}
        version = register(model_id, settings.model_name, tags, settings.alias)
        run.tags({"hpt.model": version})
        run.describe(describe(result, version))
        return StageResult(run.run_id, version, chain, result)


def _plan(settings: TrainingSettings, start: Start) -> Plan:
    """The preset's plan with what the user says put in its place."""
    plan = PRESETS[settings.preset].plan
    said = {
        name: getattr(settings, name)
        for name in (
            "batch_size",
            "weight_decay",
            "key_momentum",
            "temperature",
            "queue_size",
            "bn_splits",
        )
        if getattr(settings, name) is not None
    }
    return replace(
        plan,
        **said,
        steps=settings.steps or start.steps,
        learning_rate=settings.learning_rate or start.learning_rate,
        subset=parse_subset(settings.augment),
        update=settings.update if isinstance(settings, AdaptSettings) else "all",
        precision=settings.precision,
        seed=settings.seed,
    )


def _fit(plan: Plan, settings: TrainingSettings, images: Images) -> Plan:
    """The plan cut to what the dataset has. A batch that the user named is not cut, but refused."""
    count = len(images.indices)
    if count < 2:
        raise HptError(f"data: {images.dataset.name} leaves {count} images to learn from; at least 2 are needed")
    if settings.batch_size is not None and settings.batch_size > count:
        raise HptError(
            f"batch_size: {settings.batch_size} is more than the {count} images of {images.dataset.name} that training "
            f"may see; lower it to {count} or less"
        )
    batch_size = min(plan.batch_size, count)
    if settings.bn_splits is not None and 2 * settings.bn_splits > batch_size:
        raise HptError(
            f"bn_splits: {settings.bn_splits} parts of a batch of {batch_size} have fewer than 2 images each; "
            f"lower it to {batch_size // 2} or less"
        )
    bn_splits = max(1, min(plan.bn_splits, batch_size // 2))
    warmup_steps = min(plan.warmup_steps, plan.steps // 10)
    return replace(plan, batch_size=batch_size, bn_splits=bn_splits, warmup_steps=warmup_steps).fit_to(count)


def _run_name(stage: str, dataset: Dataset, start: Start) -> str:
    return f"{stage} {dataset.name}" + (f" < {start.chain[-1]}" if start.chain else "")


def _tags(stage: str, chain: tuple[str, ...], plan: Plan, start: Start, dataset: Dataset) -> dict[str, str]:
    tags = {
        "hpt.stage": stage,
        "hpt.chain": " > ".join(chain),
        "hpt.update": plan.update,
        "hpt.dataset_digest": dataset.digest,
    }
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


def _picture_of_views(trainer: Trainer, batches: ViewBatches) -> Image.Image:
    """The first images as they are cropped, and the two views of each."""
    crops = batches[0].crops[:, :GRID_IMAGES].to(trainer.device)
    return views_grid(crops[0], [trainer.views(crop) for crop in crops], trainer.mean, trainer.std)


def _neighbour_accuracy(
    trainer: Trainer, images: Images, split: Split, card: BackboneCard, milestones: frozenset[int]
) -> dict[str, float]:
    """20-NN accuracy on validation images by train images, on so many of each as cost next to nothing."""
    labels = images.dataset.labels
    known = np.intersect1d(split.train, images.indices)
    asked = np.intersect1d(split.validation, images.indices)
    if labels is None or not len(known) or not len(asked):
        return {}
    rng = np.random.default_rng(0)
    budget = int(NEIGHBOUR_SHARE * trainer.plan.steps * trainer.plan.batch_size / len(milestones))
    known = np.sort(rng.permutation(known)[: max(64, budget * 2 // 3)])
    asked = np.sort(rng.permutation(asked)[: max(64, budget // 3)])
    reader = FeatureReader(images, card.image_size, ChannelStatistics(card.mean, card.std), trainer.device)
    bank, queries = (reader.features(trainer.moco.backbone, part) for part in (known, asked))
    answers = nearest_neighbour_classes(bank, labels[known], queries)
    return {"knn/val_accuracy": float((answers == labels[asked]).mean())}


def report_unreadable(run: StageRun, images: Images, step: int) -> dict[str, float]:
    """Count the images that were skipped, and name them in a table of the run."""
    count = {"data/unreadable_images": float(len(images.unreadable))}
    run.metrics(count, step)
    if images.unreadable:
        names = [str(images.dataset.names[i]) for i in images.unreadable]
        run.table({"image": names, "reason": list(images.unreadable.values())}, "unreadable_images.json")
    return count
