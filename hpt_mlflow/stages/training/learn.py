"""The core of both training stages: train, show progress, keep milestones and training states, register the result."""

from __future__ import annotations

import sys
from concurrent.futures import Future
from dataclasses import asdict, replace
from typing import NamedTuple, TypeAlias

import numpy as np
from PIL import Image

from hpt_mlflow.data.batches import ViewBatches
from hpt_mlflow.data.dataset import Dataset
from hpt_mlflow.errors import HptError
from hpt_mlflow.evaluation.neighbours import nearest_neighbour_classes
from hpt_mlflow.group import Group, was_restarted
from hpt_mlflow.report.figures import GRID_IMAGES, learning_curves, views_grid
from hpt_mlflow.report.image_grids import sample_neighbours
from hpt_mlflow.settings import AdaptSettings, TrainingSettings
from hpt_mlflow.signals import Requests, signals_as_requests
from hpt_mlflow.stages.data_report import report_data, report_unreadable
from hpt_mlflow.stages.identify import identify
from hpt_mlflow.stages.progress import ProgressDisplay
from hpt_mlflow.stages.result import StageResult, read_result, result_of
from hpt_mlflow.stages.training.judging import FEW_IMAGES
from hpt_mlflow.stages.training.prepare import Work, prepare
from hpt_mlflow.stages.training.start import Start
from hpt_mlflow.tracking import tags as tag
from hpt_mlflow.tracking.models.seen_images import log_seen_images
from hpt_mlflow.tracking.models.store import check_may_register, check_names, log_backbone
from hpt_mlflow.tracking.runs.inputs import log_inputs
from hpt_mlflow.tracking.runs.resume import earlier_run
from hpt_mlflow.tracking.runs.stage_run import StageRun, current_run_id, stage_run
from hpt_mlflow.tracking.tags import VERSION_PLACEHOLDER, milestone_name
from hpt_mlflow.training.loop import Trainer

# Whether rank 0 has work for the other processes.
AT_WORK, FINISHED = "at work", "finished"

# Forward passes for the nearest-neighbour accuracy of all milestones, as a share of the images that training sees: it
# spends about four times a forward pass on each of them, so this is under 1% of its time.
NEIGHBOUR_SHARE = 0.03


# Steps, and metrics by name.
History: TypeAlias = list[tuple[int, dict[str, float]]]


class Trained(NamedTuple):
    """A finished training.

    Attributes:
        history: all metrics of the run by step.
        lost: milestones that could not be kept as models.
        stop: whether a signal asked to stop when all was done.
    """

    history: History
    lost: list[int]
    stop: bool


class Due(NamedTuple):
    """Whether to keep the training state, and whether to stop."""

    keep: bool
    stop: bool


def learn(stage: str, settings: TrainingSettings, start: Start, dataset: Dataset, group: Group) -> StageResult:
    """Train a backbone on the images of a dataset that training may see; log, keep and register it.

    An unfinished run of the same work is resumed from its newest training state. Whatever can be refused is refused
    before the run starts. Every process trains; rank 0 alone logs and keeps. All return the same result.
    """
    if group.first:
        result = _lead(stage, settings, start, dataset, group)
        group.share(asdict(result))
        return result
    if group.share() == AT_WORK:
        _follow(prepare(stage, settings, start, dataset, group, None))
    return read_result(group.share())


def _lead(stage: str, settings: TrainingSettings, start: Start, dataset: Dataset, group: Group) -> StageResult:
    check_names(settings.model_name, settings.alias)
    check_may_register(settings.model_name, settings.alias)
    identity = identify(stage, settings, [dataset], start.parent)
    resume = "auto" if was_restarted() else settings.resume
    with earlier_run(identity, resume, current_run_id()) as earlier:
        if earlier and earlier.finished:
            group.share(FINISHED)
            return result_of(earlier)
        group.share(AT_WORK)
        work = prepare(stage, settings, start, dataset, group, earlier)
        with stage_run(work.run_name, identity, earlier) as run:
            counts = {}
            if earlier is None or not earlier.introduced:
                counts = _introduce(run, work)
            if earlier:
                _announce_resume(run, work)
            trained = _train(run, work)
            run.picture(learning_curves(trained.history), "learning_curves.png")
            metrics = {name: value for _, values in trained.history for name, value in values.items()} | counts
            result = _conclude(run, work, trained, metrics)
        # A signal during the last step stops the run around this one.
        if trained.stop and current_run_id():
            raise KeyboardInterrupt
        return result


def _conclude(run: StageRun, work: Work, trained: Trained, metrics: dict[str, float]) -> StageResult:
    """Register the last milestone, or the one that the judge prefers; if that is the parent, nothing."""
    settings, best, verdict = work.settings, work.plan.steps, ""
    if work.judging:
        judged = work.judging.judged(trained.history, trained.lost)
        registers = isinstance(settings, AdaptSettings) and settings.on_no_gain == "register"
        best, verdict = judged.best or (judged.best_after_parent if registers else 0), judged.summary
        metrics = metrics | {"judge/best_step": float(best)}
        run.metrics({"judge/best_step": float(best)}, work.plan.steps)
        print(f"{work.title}: {verdict}", file=sys.stderr)
    chain = work.card.chain
    if best:
        description = work.describe(metrics, VERSION_PLACEHOLDER, verdict)
        name = milestone_name(best)
        model = run.register(name, settings.model_name, work.tags, settings.alias, description)
    else:
        assert work.parent is not None, "only a stage with a parent is judged"
        model, chain = work.parent, chain[:-1]
        print(f"{work.title}: nothing is registered; {model} is the result", file=sys.stderr)
        if settings.alias and model.startswith(f"models:/{settings.model_name}/"):
            run.point(settings.alias, model)
        elif settings.alias:
            why = f"{model} is not a version of {settings.model_name}"
            print(f"{work.title}: the alias {settings.alias} is not set, because {why}", file=sys.stderr)
        run.tags({tag.MODEL: model})
        run.describe(work.describe(metrics, model, verdict))
    return StageResult(run.run_id, model, chain, metrics)


def _introduce(run: StageRun, work: Work) -> dict[str, float]:
    """Log what is known before the first step; gives the counts of the data report."""
    run.tags(work.tags)
    run.describe(work.describe())
    run.params(work.params)
    log_inputs(run.run_id, work.dataset, work.split, work.statistics, "training", work.parent)
    log_seen_images(run, work.dataset, work.split.seen, work.images.sample)
    run.picture(_picture_of_views(work.trainer, work.batches), "views.png")
    images = len(work.images.indices)
    if work.parent and images < FEW_IMAGES:
        run.warn(
            f"{images} images are few to adapt to: a gain will hardly show. update=norm changes least; more images, or "
            "a stage on a related set before this one, help more"
        )
    return report_data(run, work.dataset, work.split)


def _announce_resume(run: StageRun, work: Work) -> None:
    """Tell the user and the run at which step it resumes, and how many steps are repeated."""
    step = work.trainer.step
    repeated = max((logged for logged, _ in run.history), default=0) - step
    again = f"; {repeated} steps are repeated" if repeated > 0 else ""
    print(f"{work.title}: resumes run {run.run_id} at step {step} of {work.plan.steps}{again}", file=sys.stderr)
    run.tags({tag.RESUMED_AT: step})


def _train(run: StageRun, work: Work) -> Trained:
    """Train to the last step, keeping milestones and training states.

    Raises:
        KeyboardInterrupt: a signal asked to stop; the training state is kept.
        HptError: the training cannot continue, or its result cannot be kept.
    """
    trainer, steps = work.trainer, work.plan.steps
    history = [(step, metrics) for step, metrics in run.history if step <= trainer.step]
    # What the run has of step 0 stays as it is.
    if work.judging and not any(work.parent_scores.keys() <= metrics.keys() for step, metrics in history if step == 0):
        run.metrics(work.parent_scores, 0)
        history.append((0, work.parent_scores))
    kept: dict[int, Future[str]] = {}
    try:
        with (
            ProgressDisplay(work.title, steps, trainer.step) as display,
            signals_as_requests() as requests,
        ):
            for step, metrics in trainer.train(work.batches, work.workers, work.report_every):
                display.advance(step, metrics)
                model = None
                if step in work.milestones:
                    model = milestone_name(step)
                    card = replace(work.card, step=step)
                    kept[step] = log_backbone(run, trainer.backbone, card, work.tags, work.delta_parent)
                    metrics |= _look_at_neighbours(run, work, step)
                    metrics |= work.judging.metrics(trainer.backbone) if work.judging else {}
                if metrics:
                    run.metrics(metrics, step, model, work.dataset if model else None)
                    history.append((step, metrics))
                due = _due(work, requests, step)
                if due.keep:
                    run.state(step, trainer.state(work.images.unreadable).write)
                if due.stop:
                    raise KeyboardInterrupt
    finally:
        history.append((trainer.step, report_unreadable(run, work.images, trainer.step)))
    if error := run.failure(kept[steps]):
        raise HptError(f"the trained backbone cannot be kept: {error}", "free disk space, and rerun the command")
    lost = [step for step, future in kept.items() if run.failure(future)]
    return Trained(history, lost, requests.stop)


def _follow(work: Work) -> None:
    """Train as one of the other processes."""
    with signals_as_requests() as requests:
        for step, _ in work.trainer.train(work.batches, work.workers, work.report_every):
            if _due(work, requests, step).stop:
                raise KeyboardInterrupt


def _due(work: Work, requests: Requests, step: int) -> Due:
    """What is due after a step. A request to one process counts for all."""
    trainer, every = work.trainer, work.settings.checkpoint_every
    stop, keep = trainer.group.any(requests.stop, requests.keep)
    requests.keep = requests.keep and not keep
    if step == work.plan.steps:
        return Due(keep=False, stop=False)
    keep = stop or keep or bool(every and step % every == 0)
    if keep:
        trainer.agree(work.images)
    return Due(keep, stop)


def _picture_of_views(trainer: Trainer, batches: ViewBatches) -> Image.Image:
    """The first images as they are cropped, and the views of each."""
    batch = batches[next(batches.tasks(range(1)))]
    crops = [crop[:GRID_IMAGES] for crop in trainer.crops_of(batch)]
    rng = np.random.default_rng(trainer.plan.seed)
    views = [trainer.finish(crop, trainer.draw_view(rng).part(slice(0, len(crop)))) for crop in crops]
    return views_grid(crops[0], views, trainer.mean, trainer.std)


def _look_at_neighbours(run: StageRun, work: Work, step: int) -> dict[str, float]:
    """20-NN accuracy on validation images by train images, on as many of each as cost next to nothing.

    A few are logged as a picture.
    """
    images, reader, trainer = work.images, work.reader, work.trainer
    labels = images.dataset.labels
    known = np.intersect1d(work.split.train, images.indices)
    asked = np.intersect1d(work.split.validation, images.indices)
    if labels is None or images.dataset.multilabel or not len(known) or not len(asked):
        return {}
    rng = np.random.default_rng(0)
    budget = int(NEIGHBOUR_SHARE * work.plan.steps * work.plan.batch_size / len(work.milestones))
    known = np.sort(rng.permutation(known)[: max(64, budget * 2 // 3)])
    asked = np.sort(rng.permutation(asked)[: max(64, budget // 3)])
    bank, queries = (reader.features(trainer.backbone, part) for part in (known, asked))
    answers = nearest_neighbour_classes(bank, labels[known], queries)
    classes = images.dataset.classes
    run.image(sample_neighbours(images, asked, queries, known, bank, labels, classes), "nearest neighbours", step)
    still_there = ~np.isin(asked, list(images.unreadable))
    return {"knn/val_accuracy": float((answers == labels[asked])[still_there].mean())}
