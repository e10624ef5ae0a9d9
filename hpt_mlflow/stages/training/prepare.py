"""All that a training needs, resolved, checked and ready before its run is started."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial

import torch

from hpt_mlflow.augment.multicrop import LocalViews, useful_side
from hpt_mlflow.augment.subset import format_strengths
from hpt_mlflow.data.batches import ViewBatches
from hpt_mlflow.data.dataset import Dataset
from hpt_mlflow.data.gpu_images import GpuImages, images_on_gpu
from hpt_mlflow.data.images import Images
from hpt_mlflow.data.loading import default_workers
from hpt_mlflow.data.split import Split
from hpt_mlflow.data.statistics import ChannelStatistics, kept_channel_statistics
from hpt_mlflow.evaluation.features import FeatureReader
from hpt_mlflow.group import Group, own_device, processes_here, side_by_side
from hpt_mlflow.models.backbone import batch_norms
from hpt_mlflow.models.checkpoint import BackboneCard
from hpt_mlflow.models.delta import DeltaParent
from hpt_mlflow.models.drop_path import check_drop_path
from hpt_mlflow.models.learning import learning_share
from hpt_mlflow.report.card import training_card
from hpt_mlflow.settings import TrainingSettings
from hpt_mlflow.stages.processes.device import resolve_device
from hpt_mlflow.stages.training.judging import Judging, judging_precision, open_judge
from hpt_mlflow.stages.training.resolve import resolve_local_views, resolve_training, split_for, strengths_of
from hpt_mlflow.stages.training.start import Start, for_channels
from hpt_mlflow.tracking import tags as tag
from hpt_mlflow.tracking.runs.resume import EarlierRun
from hpt_mlflow.tracking.runs.states import newest_state
from hpt_mlflow.training.arithmetic import choose_precision, choose_steps
from hpt_mlflow.training.loop import Trainer
from hpt_mlflow.training.milestones import parse_milestones
from hpt_mlflow.training.plan import Plan

# Steps between two reports of metrics: at least 100 reports in a short training, at most 50 steps apart in a long one.
REPORTS = 100
LONGEST_REPORT = 50

log = logging.getLogger("hpt_mlflow")


@dataclass(frozen=True)
class Work:
    """All that a training needs, checked and ready.

    Attributes:
        reader: of frozen features.
        judging: of the milestones; None for none, and in all processes but the first.
        parent_scores: the metrics of step 0, if there is a judge.
        parent: address of the model that the training starts from; None for none.
        delta_parent: see `Start`.
        report_every: steps between two reports of metrics.
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
    reader: FeatureReader
    judging: Judging | None
    parent_scores: dict[str, float]
    parent: str | None
    delta_parent: DeltaParent | None
    report_every: int
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


def prepare(
    stage: str, settings: TrainingSettings, start: Start, dataset: Dataset, group: Group, earlier: EarlierRun | None
) -> Work:
    """Resolve and check everything, decode what fits into memory, and restore the training state of an earlier run.

    Args:
        earlier: the run to resume; only the first process of a group has it.
    """
    if settings.drop_path is not None:
        check_drop_path(start.backbone, start.architecture)
    device = own_device(resolve_device(settings.device))
    split = split_for(settings, dataset)
    local = resolve_local_views(settings.method, start.backbone, start.architecture)
    images = _open_images(dataset, split, start.architecture.image_size, local, settings, group)
    start = for_channels(start, images.pixels.channels, settings.seed)
    plan = resolve_training(
        settings, dataset.name, len(images.indices), group.size, start.origin, bool(batch_norms(start.backbone))
    )
    milestones = parse_milestones(settings.milestones, plan.steps)
    plan = _choose_arithmetic(settings, plan, device, group, earlier)
    inherited = start.statistics if plan.statistics == "keep" else None
    statistics = inherited or _channel_statistics(images, group)
    gpu_images = _images_on_gpu(settings, images, device, group, earlier)
    workers = settings.workers
    if workers is None:
        workers = 0 if gpu_images else default_workers(images, device, processes_here())

    chain = (*start.chain, dataset.name)
    trainer = Trainer(start.backbone, start.feature_size, plan, statistics, device, group)
    precision = judging_precision(plan, device)
    reader = FeatureReader(images, start.architecture.image_size, statistics, device, precision=precision)
    judging = open_judge(settings, plan, trainer.method.passes, 1 + len(milestones), reader, split)
    judging = judging if group.first else None
    # Before the weights are those of a resumed training.
    parent_scores = judging.normalising_with(start.statistics).metrics(trainer.backbone) if judging else {}
    state = newest_state(earlier.run.info.run_id) if earlier else None
    trainer.restore(state)
    if state:
        images.report_unreadable(state.unreadable.items())
    batches = ViewBatches(
        images,
        plan.batch_size,
        start.architecture.image_size,
        plan.subset,
        plan.strengths,
        plan.seed,
        group.part(plan.batch_size),
        trainer.method.views,
        local,
        gpu_images,
    )
    return Work(
        title=f"{stage} {dataset.name}",
        run_name=f"{stage} {dataset.name}" + (f" < {start.chain[-1]}" if start.chain else ""),
        settings=settings,
        params=_params(settings, plan, start, workers, trainer, gpu_images),
        plan=plan,
        milestones=milestones,
        reader=reader,
        judging=judging,
        parent_scores=parent_scores,
        parent=start.parent,
        delta_parent=start.delta_parent,
        report_every=max(1, min(LONGEST_REPORT, plan.steps // REPORTS)),
        workers=workers,
        dataset=dataset,
        split=split,
        images=images,
        statistics=statistics,
        trainer=trainer,
        batches=batches,
        card=BackboneCard(
            start.architecture, start.feature_size, statistics.mean, statistics.std, chain, pixels=images.pixels
        ),
        tags=_tags(stage, chain, plan, start, dataset),
        describe=partial(
            training_card,
            chain,
            dataset,
            split,
            plan,
            start.architecture,
            start.parent,
            start.parent_method,
            pixels=images.pixels,
            delta=start.delta_parent is not None,
        ),
    )


def _open_images(
    dataset: Dataset, split: Split, image_size: int, local: LocalViews, settings: TrainingSettings, group: Group
) -> Images:
    """The first process decodes into the cache, where the others find the images, and says which are unreadable."""
    side = useful_side(image_size, strengths_of(settings), local)
    opened = partial(Images, dataset, split.seen, side, settings.strict, cache_gib=settings.cache_gib)
    images = opened() if group.first else None
    unreadable = group.share(list(images.unreadable.items()) if images else None)
    return images or opened(known_unreadable=dict(unreadable))


def _choose_arithmetic(
    settings: TrainingSettings, plan: Plan, device: torch.device, group: Group, earlier: EarlierRun | None
) -> Plan:
    """The plan with the choice of the first process; a resumed training keeps the arithmetic that it began with."""
    choice = None
    if group.first:
        began = {
            name: earlier.run.data.params.get(tag.setting_param(name), "") if earlier else ""
            for name in ("precision", "compile", "graph")
        }
        precision = choose_precision(began["precision"] or settings.precision, device)
        wanted = {"True": "on", "False": "off"}.get(began["compile"], settings.compile)
        graph = "off" if began["graph"] == "False" else settings.cuda_graph
        chosen = choose_steps(wanted, graph, replace(plan, precision=precision), device, group.size)
        choice = precision, chosen.compile, chosen.graph
    precision, compiles, graphed = group.share(choice)
    return replace(plan, precision=precision, compile=compiles, graph=graphed)


def _images_on_gpu(
    settings: TrainingSettings, images: Images, device: torch.device, group: Group, earlier: EarlierRun | None
) -> GpuImages | None:
    """The images on the GPU, unless the user wants worker processes; a resumed training keeps to how it began."""
    began = ""
    if earlier and earlier.introduced:
        # Runs from before there was this choice lack it.
        began = earlier.run.data.params.get(tag.setting_param("gpu_images"), "False")
    began = group.share(began)
    wanted = settings.workers is None and began != "False"
    found = images_on_gpu(images, device, side_by_side()) if wanted else None
    if began == "True" and not found and group.first:
        log.warning(
            "this training began with its images on a GPU; now that they are not, some pixels may differ by one level"
        )
    return found


def _channel_statistics(images: Images, group: Group) -> ChannelStatistics:
    """Those of the first process, from the cache or computed."""
    found = kept_channel_statistics(images) if group.first else None
    shared = group.share(asdict(found) if found else None)
    return ChannelStatistics(tuple(shared["mean"]), tuple(shared["std"]))


def _tags(stage: str, chain: tuple[str, ...], plan: Plan, start: Start, dataset: Dataset) -> dict[str, str]:
    tags = {
        tag.STAGE: stage,
        tag.METHOD: plan.method,
        tag.CHAIN: " > ".join(chain),
        tag.ORIGIN: start.origin,
        tag.UPDATE: plan.update,
        tag.AUGMENT: ",".join(plan.subset) or "none",
        tag.DATASET_DIGEST: dataset.digest,
    }
    if changed := format_strengths(plan.strengths):
        tags[tag.STRENGTHS] = changed
    if start.delta_parent:
        tags[tag.STORE] = tag.DELTA
    if start.weights:
        return tags | start.weights
    if start.parent_method:
        tags[tag.PARENT_METHOD] = start.parent_method
    return tags | ({tag.PARENT_MODEL: start.parent} if start.parent else {})


def _params(
    settings: TrainingSettings,
    plan: Plan,
    start: Start,
    workers: int,
    trainer: Trainer,
    gpu_images: GpuImages | None,
) -> dict[str, object]:
    """Every setting as it was resolved, and what follows from them."""
    resolved = {
        **start.architecture.as_settings(),
        "workers": workers,
        "device": trainer.device,
        "nproc": trainer.group.size,
        "gpu_images": gpu_images is not None,
        "learning_share": round(learning_share(trainer.method.learner), 5) if plan.what_learns.learns else 0.0,
    }
    return asdict(settings) | plan.as_params() | resolved
