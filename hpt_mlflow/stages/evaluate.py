"""Evaluate: what a model is worth on a labelled dataset, beside an untrained network; a classifier comes of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace

import numpy as np
from torch import nn

from hpt_mlflow.data.contents import VERSION
from hpt_mlflow.data.dataset import Dataset, content_digest
from hpt_mlflow.data.labels import check_labels, leave_out_classes
from hpt_mlflow.data.sources import open_dataset
from hpt_mlflow.data.statistics import kept_channel_statistics
from hpt_mlflow.errors import HptError
from hpt_mlflow.evaluation.feature_precision import FeaturePrecision, choose_feature_precision
from hpt_mlflow.evaluation.scores import primary_name
from hpt_mlflow.evaluation.task import Outcome, Task, learn_labels, with_refreshed_batch_norm
from hpt_mlflow.group import joins_others
from hpt_mlflow.models.backbone import build_backbone
from hpt_mlflow.models.checkpoint import BackboneCard
from hpt_mlflow.models.classifier import ClassifierCard
from hpt_mlflow.report.evaluation_card import evaluation_card
from hpt_mlflow.report.evaluation_figures import milestone_curve
from hpt_mlflow.settings import DEFAULT_MODEL_NAME, EvaluateSettings
from hpt_mlflow.stages.data_report import report_data, report_unreadable
from hpt_mlflow.stages.evaluation.metrics import certain_figures, compared_with_untrained, first_step_to, repeat_figures
from hpt_mlflow.stages.evaluation.pictures import log_curve, log_pictures, log_predictions
from hpt_mlflow.stages.evaluation.task import prepare_task
from hpt_mlflow.stages.evaluation.unseen import check_unseen
from hpt_mlflow.stages.progress import show_steps
from hpt_mlflow.stages.result import StageResult
from hpt_mlflow.stages.signature import takes
from hpt_mlflow.stages.training.resolve import identify
from hpt_mlflow.tracking import tags as tag
from hpt_mlflow.tracking.addresses import milestones_of, registered_as
from hpt_mlflow.tracking.connection import connect
from hpt_mlflow.tracking.delivery.entries import VERSION_PLACEHOLDER
from hpt_mlflow.tracking.identity import Identity
from hpt_mlflow.tracking.models.evaluations import exists
from hpt_mlflow.tracking.models.seen_images import log_seen_images
from hpt_mlflow.tracking.models.store import (
    FoundModel,
    check_may_register,
    check_names,
    find_model,
    log_classifier,
)
from hpt_mlflow.tracking.runs.dataset_input import log_dataset
from hpt_mlflow.tracking.runs.stage_run import StageRun, stage_run


@takes(EvaluateSettings)
def evaluate(chosen: EvaluateSettings) -> StageResult:
    """Learn labels from a model, choose on validation, and test once, on images that no stage has trained on.

    The same is done with an untrained network of the same architecture, since random features are a strong baseline on
    small images. Of a run, each milestone is evaluated, and the last one in full. The classifier is registered.

    Raises:
        HptError: something is wrong that the user can mend; before any long work where that is possible.
    """
    if joins_others():
        raise HptError("evaluate works in one process: start it without torchrun and WORLD_SIZE")
    dataset = leave_out_classes(open_dataset(chosen.data, chosen.root), chosen.classes_left_out)
    check_labels(dataset, dataset.split(chosen.split_seed))
    connect()
    addresses = addresses_of(chosen.model)
    found = find_model(addresses[-1], "model", DEFAULT_MODEL_NAME)
    card, classifier_name = found.card, _classifier_name(chosen, found.uri)
    if classifier_name is not None:
        check_may_register(classifier_name)
    task = prepare_task(chosen, dataset, card)
    seen = check_unseen(chosen, found.uri, dataset, task)

    with stage_run(f"evaluate {dataset.name}: {' > '.join(card.chain)}") as run:
        untrained = _untrained(chosen, task, card) if chosen.untrained else []
        arithmetic = _choose_precision(chosen, task, [found.backbone, *untrained])
        task = replace(task, reader=replace(task.reader, precision=arithmetic.precision))
        tags = _introduce(run, chosen, dataset, task, found, arithmetic, addresses)
        counts = report_data(run, dataset, dataset.split(chosen.split_seed))
        if seen.unknown:
            run.warn(f"data: whether test images were trained on cannot be checked, because {seen.unknown}")
        figures_by_step = {}
        for address in addresses:
            milestone = found if address == addresses[-1] else find_model(address, "model", DEFAULT_MODEL_NAME)
            outcomes = list(_repeat(chosen, task, milestone))
            best = max(outcomes, key=lambda outcome: outcome.validation_score)
            figures_by_step[milestone.card.step] = result = _log_figures(run, chosen, best, outcomes, milestone)
        more = {} if seen.seen is None else {"data/test_images_seen": float(seen.seen)}
        more |= compared_with_untrained(best, _learn_from_untrained(chosen, task, untrained) if untrained else None)
        if len(addresses) > 1 or chosen.steps_to is not None:
            more |= _log_milestones(run, chosen, figures_by_step, more, task)
        run.metrics(more, card.step, found.model_id)
        log_curve(run, best)
        log_predictions(run, best, [dataset.names[i] for i in task.split.test])
        log_pictures(run, chosen.protocol, best)
        report_unreadable(run, task.reader.images, card.step)
        result |= more | counts
        classifier = _keep_classifier(run, chosen, best, found, dataset, classifier_name, tags, result)
        return StageResult(run.run_id, found.uri, card.chain, result, classifier)


def evaluation_identity(settings: EvaluateSettings, dataset: Dataset, addresses: list[str]) -> Identity:
    """What makes another evaluation the same work.

    Args:
        addresses: of the models, without `latest` or alias.
    """
    return identify("evaluate", replace(settings, model=", ".join(addresses)), [dataset])


def addresses_of(model: str) -> list[str]:
    """Of a run, its milestones, the last one by the version that it was registered as; of a model, itself."""
    run_id = model.removeprefix("runs:/").strip("/")
    if not model.startswith("runs:/") or "/" in run_id:
        return [model]
    milestones, version = milestones_of(run_id, "model"), registered_as(run_id)
    return [*milestones[:-1], version if version and exists(version) else milestones[-1]]


def _classifier_name(settings: EvaluateSettings, uri: str) -> str | None:
    """The registered model that gets the classifier, or None for none."""
    if settings.classifier_name == "none":
        return None
    of_version = uri.startswith("models:/") and "/" in uri.removeprefix("models:/")
    backbone = uri.removeprefix("models:/").split("/")[0] if of_version else DEFAULT_MODEL_NAME
    name = settings.classifier_name or backbone.removesuffix(tag.CLASSIFIER_SUFFIX) + tag.CLASSIFIER_SUFFIX
    check_names(name, None)
    return name


def _introduce(
    run: StageRun,
    settings: EvaluateSettings,
    dataset: Dataset,
    task: Task,
    found: FoundModel,
    arithmetic: FeaturePrecision,
    addresses: list[str],
) -> dict[str, str]:
    """Log what is known before the first figure; give the tags that the classifier gets as well."""
    card, images = found.card, task.reader.images
    tags = {
        tag.STAGE: "evaluate",
        tag.FINGERPRINT: evaluation_identity(settings, dataset, addresses).fingerprint,
        tag.CHAIN: " > ".join(card.chain),
        tag.PARENT_MODEL: found.uri,
        tag.DATASET_DIGEST: dataset.digest,
        tag.TEST_DIGEST: _test_digest(dataset, settings.split_seed),
        tag.CONTENTS: str(VERSION),
        tag.METRIC: f"test/{primary_name(task.labels)}",
        tag.PROTOCOL: settings.protocol,
    }
    run.tags(tags)
    run.params(
        asdict(settings)
        | {"model": found.uri, "arch": card.architecture.name, "image_size": card.architecture.image_size}
        | {"precision": arithmetic.precision}
        | ({"features_trial": arithmetic.trial} if arithmetic.trial else {})
    )
    log_dataset(run.run_id, dataset, task.split, kept_channel_statistics(images), "evaluation")
    if settings.protocol == "finetune":
        log_seen_images(run, dataset, task.split.seen)
    return tags


def _test_digest(dataset: Dataset, split_seed: int) -> str:
    """Names the test images by content, label and place, so that predictions of two models can be paired."""
    test = dataset.split(split_seed).test
    assert dataset.labels is not None
    classes = np.frombuffer("\0".join(dataset.classes).encode(), np.uint8)
    return content_digest(test, dataset.contents.of(test), dataset.labels[test], classes)


def _repeat(settings: EvaluateSettings, task: Task, found: FoundModel) -> Iterator[Outcome]:
    """Learn from the same backbone, each time with another seed."""
    for seed in range(settings.seed, settings.seed + settings.repeats):
        shown = show_steps(f"{settings.protocol}, {found.uri}, seed {seed}")
        yield learn_labels(settings.protocol, found.backbone, task, seed, settings.steps, shown)


def _untrained(settings: EvaluateSettings, task: Task, card: BackboneCard) -> list[nn.Module]:
    """An untrained network, with BatchNorm's statistics as initialised, and with those of train."""
    backbone, _ = build_backbone(card.architecture, settings.seed)
    return [backbone, with_refreshed_batch_norm(backbone, task)]


def _choose_precision(settings: EvaluateSettings, task: Task, backbones: list[nn.Module]) -> FeaturePrecision:
    """One arithmetic for all networks of an evaluation, milestones included, so that the fairest comparison is kept.

    Of milestones, the last one is tried: with the untrained networks it stands at the ends of what the others are in
    between. A network that is fine-tuned changes after any trial, so that only the user can choose bfloat16 for it.
    """
    if settings.protocol == "finetune" and settings.precision == "auto":
        return FeaturePrecision("float32")
    placed = [backbone.to(task.reader.device) for backbone in backbones]
    return choose_feature_precision(settings.precision, task.reader, placed)


def _learn_from_untrained(settings: EvaluateSettings, task: Task, ways: list[nn.Module]) -> Outcome:
    """An untrained network at its best of some ways to prepare it, by validation."""
    outcomes = [learn_labels("fast", way, task, settings.seed) for way in ways]
    best = max(outcomes, key=lambda outcome: outcome.validation_score)
    if settings.protocol == "fast":
        return best
    shown = show_steps(f"{settings.protocol}, untrained network")
    return learn_labels(settings.protocol, best.backbone, task, settings.seed, settings.steps, shown)


def _log_figures(
    run: StageRun, settings: EvaluateSettings, best: Outcome, outcomes: list[Outcome], found: FoundModel
) -> dict[str, float]:
    """Log the figures of one model: those of the repetition that is best on validation, and the spread of all."""
    figures = certain_figures(settings.protocol, best) | repeat_figures(outcomes)
    run.metrics(figures, found.card.step, found.model_id)
    if best.reason:
        run.warn(f"{found.uri}: {best.reason}")
    return figures


def _log_milestones(
    run: StageRun,
    settings: EvaluateSettings,
    figures_by_step: dict[int, dict[str, float]],
    more: dict[str, float],
    task: Task,
) -> dict[str, float]:
    """Draw the figure of each milestone against pretraining steps; find the first that reaches what was asked for."""
    name = primary_name(task.labels)
    steps = sorted(figures_by_step)
    scores, lows, highs = (
        [figures_by_step[step][f"test/{name}{end}"] for step in steps] for end in ("", "_low", "_high")
    )
    found = first_step_to(settings.steps_to, steps, scores)
    reached = (settings.steps_to, found) if settings.steps_to is not None and found is not None else None
    curve = milestone_curve(steps, scores, lows, highs, name, more.get(f"random/{name}"), reached)
    run.picture(curve, "milestones.png")
    if settings.steps_to is not None and found is None:
        run.warn(f"no milestone reaches {name} {settings.steps_to:g}; the best has {max(scores):.3f}")
    return {"test/steps_to": float(found)} if found is not None else {}


def _keep_classifier(
    run: StageRun,
    settings: EvaluateSettings,
    outcome: Outcome,
    found: FoundModel,
    dataset: Dataset,
    name: str | None,
    tags: dict[str, str],
    result: dict[str, float],
) -> str | None:
    """Keep the classifier with the run, register it under a name where there is one, and describe the run."""
    card = ClassifierCard(
        dataset.classes, dataset.multilabel, dataset.name, settings.protocol, outcome.task.reader.resize_to
    )
    tags = tags | {tag.EVALUATION: run.run_id}
    log_classifier(run, outcome.backbone, found.card, outcome.head.tensors, card, tags)
    kept = f"runs:/{run.run_id}/{tag.CLASSIFIER_NAME}" if name is None else VERSION_PLACEHOLDER
    described = evaluation_card(
        found.uri, kept, found.card.chain, dataset, outcome.task.split, settings.protocol, result, outcome.reason
    )
    if name is None:
        run.describe(described)
        return None
    version = run.register(tag.CLASSIFIER_NAME, name, tags, None, described)
    run.tags({tag.CLASSIFIER: version})
    return version
