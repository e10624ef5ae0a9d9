"""Evaluate: how good a model is on a labelled dataset, compared with an untrained network; makes a classifier."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np

from hpt_mlflow.data.contents import VERSION
from hpt_mlflow.data.dataset import Dataset, content_digest
from hpt_mlflow.data.statistics import kept_channel_statistics
from hpt_mlflow.errors import HptError
from hpt_mlflow.evaluation.protocols import DEFAULT_PROTOCOL, PROTOCOLS
from hpt_mlflow.evaluation.protocols.base import Outcome, learn_labels
from hpt_mlflow.evaluation.scores import primary_name
from hpt_mlflow.group import joins_others
from hpt_mlflow.models.backbone import build_backbone
from hpt_mlflow.models.classifier import ClassifierCard
from hpt_mlflow.report.evaluation_card import evaluation_card
from hpt_mlflow.settings import EvaluateSettings
from hpt_mlflow.stages.data_report import report_data, report_unreadable
from hpt_mlflow.stages.evaluation.metrics import baseline_metrics, outcome_metrics, repeat_metrics
from hpt_mlflow.stages.evaluation.near_seen import near_seen
from hpt_mlflow.stages.evaluation.pictures import log_curve, log_milestones, log_pictures, log_predictions
from hpt_mlflow.stages.evaluation.work import EvaluationWork, prepare_evaluation
from hpt_mlflow.stages.progress import show_steps
from hpt_mlflow.stages.result import StageResult
from hpt_mlflow.stages.signature import takes
from hpt_mlflow.tracking import tags as tag
from hpt_mlflow.tracking.models.seen_images import log_seen_images
from hpt_mlflow.tracking.models.store import FoundModel, log_classifier
from hpt_mlflow.tracking.runs.inputs import log_inputs
from hpt_mlflow.tracking.runs.stage_run import StageRun, stage_run
from hpt_mlflow.tracking.tags import VERSION_PLACEHOLDER


@takes(EvaluateSettings)
def evaluate(chosen: EvaluateSettings) -> StageResult:
    """Learn labels from a model, choose on validation, and test once, on images that no stage has trained on.

    The same is done with an untrained network of the same architecture, since random features are a strong baseline on
    small images. Of a run, each milestone is evaluated, and the last one in full. The classifier is registered.

    Raises:
        HptError: the user has to change something; before any long work if possible.
    """
    if joins_others():
        raise HptError("evaluate works in one process", "start it without torchrun and WORLD_SIZE")
    work = prepare_evaluation(chosen)
    dataset, task, model = work.dataset, work.task, work.model

    with stage_run(work.run_name) as run:
        tags = _introduce(run, work)
        counts = report_data(run, dataset, dataset.split(chosen.split_seed))
        by_step = {milestone.card.step: _evaluate(run, work, milestone)[1] for milestone in work.earlier_milestones()}
        best, metrics = _evaluate(run, work, model)
        by_step[model.card.step] = metrics
        untrained = _learn_from_untrained(work) if chosen.untrained else None
        more = _seen_metrics(run, work) | baseline_metrics(best, untrained)
        if len(by_step) > 1:
            log_milestones(run, by_step, primary_name(task.labels), untrained)
        run.metrics(more, model.card.step, model.model_id, dataset)
        log_curve(run, best)
        log_predictions(run, best, [dataset.names[i] for i in task.split.test])
        log_pictures(run, best, model.card.step)
        report_unreadable(run, task.reader.images, model.card.step)
        result = metrics | more | counts
        classifier = _keep_classifier(run, work, best, tags, result)
        return StageResult(run.run_id, model.uri, model.card.chain, result, classifier)


def _introduce(run: StageRun, work: EvaluationWork) -> dict[str, str]:
    """Log all that is known before the first result; returns the tags that the classifier gets as well."""
    settings, dataset, task, card = work.settings, work.dataset, work.task, work.model.card
    network = card.architecture
    tags = {
        tag.STAGE: "evaluate",
        tag.FINGERPRINT: work.identity.fingerprint,
        tag.CHAIN: " > ".join(card.chain),
        tag.PARENT_MODEL: work.model.uri,
        tag.DATASET_DIGEST: dataset.digest,
        tag.TEST_DIGEST: _test_digest(dataset, settings.split_seed),
        tag.CONTENTS: str(VERSION),
        tag.METRIC: f"test/{primary_name(task.labels)}",
        tag.PROTOCOL: settings.protocol,
    }
    run.tags(tags)
    resolved = {"model": work.model.uri, "precision": task.reader.precision}
    run.params(asdict(settings) | resolved | {"arch": network.name, "image_size": network.image_size})
    statistics = kept_channel_statistics(task.reader.images)
    log_inputs(run.run_id, dataset, task.split, statistics, "evaluation", work.model.uri)
    if PROTOCOLS[settings.protocol].trains_backbone:
        log_seen_images(run, dataset, task.split.seen)
    return tags


def _test_digest(dataset: Dataset, split_seed: int) -> str:
    """Identifies the test images by content, label and order, so that predictions of two models can be paired."""
    test = dataset.split(split_seed).test
    assert dataset.labels is not None
    classes = np.frombuffer("\0".join(dataset.classes).encode(), np.uint8)
    return content_digest(test, dataset.contents.of(test), dataset.labels[test], classes)


def _evaluate(run: StageRun, work: EvaluationWork, model: FoundModel) -> tuple[Outcome, dict[str, float]]:
    """Learn from a model with each seed; returns the best outcome by validation, and the metrics that were logged."""
    settings = work.settings
    outcomes = []
    for seed in range(settings.seed, settings.seed + settings.repeats):
        show = show_steps(f"{settings.protocol}, {model.uri}, seed {seed}")
        outcomes.append(learn_labels(settings.protocol, model.backbone, work.task, seed, settings.steps, show))
    best = max(outcomes, key=lambda outcome: outcome.validation_score)
    metrics = outcome_metrics(settings.protocol, best) | repeat_metrics(outcomes)
    run.metrics(metrics, model.card.step, model.model_id, work.dataset)
    if best.warning:
        run.warn(f"{model.uri}: {best.warning}")
    return best, metrics


def _learn_from_untrained(work: EvaluationWork) -> Outcome:
    """Learn from an untrained network, with BatchNorm as initialised or refreshed, the better by validation."""
    settings, task, card = work.settings, work.task, work.model.card
    initialised, _ = build_backbone(card.architecture, settings.seed)
    networks = (initialised, task.reader.with_refreshed_batch_norm(initialised, task.split.train))
    outcomes = [learn_labels(DEFAULT_PROTOCOL, network, task, settings.seed) for network in networks]
    best = max(outcomes, key=lambda outcome: outcome.validation_score)
    if settings.protocol == DEFAULT_PROTOCOL:
        return best
    show = show_steps(f"{settings.protocol}, untrained network")
    return learn_labels(settings.protocol, best.backbone, task, settings.seed, settings.steps, show)


def _seen_metrics(run: StageRun, work: EvaluationWork) -> dict[str, float]:
    """How many test images were trained on, or a warning that this is unknown; and a warning of near copies."""
    counts = {}
    near = near_seen(work.overlaps, work.task)
    if near:
        counts["data/test_images_near_seen"] = float(max(len(stage.indices) for stage in near))
    for stage in near:
        if len(stage.indices):
            run.warn(f"data: {stage.describe(work.task)}")
    if work.overlaps.seen is not None:
        return counts | {"data/test_images_seen": float(work.overlaps.seen)}
    run.warn(f"data: whether test images were trained on cannot be checked, because {work.overlaps.unknown}")
    return counts


def _keep_classifier(
    run: StageRun, work: EvaluationWork, best: Outcome, tags: dict[str, str], result: dict[str, float]
) -> str | None:
    """Log the classifier, register it if it has a name, and describe the run; returns the registered version."""
    dataset, name, protocol = work.dataset, work.classifier_name, work.settings.protocol
    tags = tags | {tag.EVALUATION: run.run_id}
    card = ClassifierCard(dataset.classes, dataset.multilabel, dataset.name, protocol, work.task.reader.resize_to)
    served = replace(work.model.card, pixels=work.task.reader.images.pixels)
    log_classifier(run, best.backbone, served, best.head.tensors, card, tags)
    address = f"runs:/{run.run_id}/{tag.CLASSIFIER_NAME}" if name is None else VERSION_PLACEHOLDER
    described = evaluation_card(
        work.model.uri,
        address,
        work.model.card.chain,
        dataset,
        best.task.split,
        PROTOCOLS[protocol].title,
        result,
        best.warning,
    )
    if name is None:
        run.describe(described)
        return None
    version = run.register(tag.CLASSIFIER_NAME, name, tags, None, described)
    run.tags({tag.CLASSIFIER: version})
    return version
