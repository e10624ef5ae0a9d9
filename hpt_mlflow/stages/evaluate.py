"""Evaluate: what a model's frozen features are worth on a labelled dataset, beside those of an untrained network."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import nn

from hpt_mlflow.data.dataset import Dataset
from hpt_mlflow.data.images import Images
from hpt_mlflow.data.sources import open_dataset
from hpt_mlflow.data.split import SMALLEST_CLASS, Split
from hpt_mlflow.data.statistics import ChannelStatistics, kept_channel_statistics
from hpt_mlflow.errors import HptError
from hpt_mlflow.evaluation.features import FeatureReader
from hpt_mlflow.evaluation.judgement import Judgement, Parts, judge
from hpt_mlflow.models.backbone import build_backbone
from hpt_mlflow.report.card import evaluation_card
from hpt_mlflow.report.figures import confusion_matrix
from hpt_mlflow.settings import DEFAULT_MODEL_NAME, EvaluateSettings
from hpt_mlflow.stages.device import resolve_device
from hpt_mlflow.stages.learn import report_unreadable
from hpt_mlflow.stages.result import StageResult
from hpt_mlflow.tracking.connection import connect
from hpt_mlflow.tracking.dataset_input import log_dataset
from hpt_mlflow.tracking.registry import find_model
from hpt_mlflow.tracking.runs import stage_run


def evaluate(**settings: Any) -> StageResult:
    """Fit a linear probe on frozen features and test it once, on images that no stage has trained on.

    The same is done with an untrained network of the same architecture, since random features are a strong baseline on
    small images.

    Args:
        settings: the fields of `EvaluateSettings`.

    Raises:
        HptError: something is wrong that the user can mend; before any long work where that is possible.
    """
    chosen = EvaluateSettings(**settings)
    device = resolve_device(chosen.device)
    dataset = open_dataset(chosen.data, chosen.root)
    all_labels = _check_labels(dataset)
    connect()
    found = find_model(chosen.model, "model", DEFAULT_MODEL_NAME)
    card = found.card
    images = Images(dataset, np.arange(len(dataset)), card.image_size)
    split = _readable_split(dataset, images, chosen.split_seed)
    # What is evaluated is what is served: images are normalised as the model was trained, whatever the dataset.
    statistics = ChannelStatistics(card.mean, card.std)
    reader = FeatureReader(images, card.image_size, statistics, device, chosen.batch_size, chosen.workers)

    with stage_run(f"evaluate {dataset.name}: {' > '.join(card.chain)}") as run:
        run.tags(
            {
                "hpt.stage": "evaluate",
                "hpt.chain": " > ".join(card.chain),
                "hpt.parent_model": found.uri,
                "hpt.dataset_digest": dataset.digest,
            }
        )
        run.params(asdict(chosen) | {"model": found.uri, "arch": card.arch, "image_size": card.image_size})
        own_statistics = kept_channel_statistics(f"{dataset.digest}-all-{card.image_size}", images.sample)
        log_dataset(run.run_id, dataset, split, own_statistics, "evaluation")

        labels = Parts(*(all_labels[part] for part in (split.train, split.validation, split.test)))
        learned = judge(_features(reader, found.backbone, split), labels)
        torch.manual_seed(chosen.seed)
        untrained_backbone, _ = build_backbone(card.arch, card.image_size, card.small_stem)
        untrained = _judge_untrained(reader, untrained_backbone, split, labels)

        result = _metrics(learned, untrained, labels)
        run.metrics(result, card.step, found.model_id)
        run.picture(confusion_matrix(labels.test, learned.prediction, dataset.classes), "confusion_matrix.png")
        report_unreadable(run, images, card.step)
        run.describe(evaluation_card(found.uri, card.chain, dataset, split, result))
        return StageResult(run.run_id, found.uri, card.chain, result)


def _features(reader: FeatureReader, backbone: nn.Module, split: Split) -> Parts:
    backbone = backbone.to(reader.device).to(memory_format=torch.channels_last)
    return Parts(*(reader.features(backbone, part) for part in (split.train, split.validation, split.test)))


def _judge_untrained(reader: FeatureReader, backbone: nn.Module, split: Split, labels: Parts) -> Judgement:
    """An untrained network at its best: BatchNorm's statistics as initialised or those of train, by validation."""
    as_built = judge(_features(reader, backbone, split), labels)
    reader.refresh_batch_norm(backbone, split.train)
    refreshed = judge(_features(reader, backbone, split), labels)
    return max(as_built, refreshed, key=lambda judgement: judgement.probe.validation_accuracy)


def _metrics(learned: Judgement, untrained: Judgement, labels: Parts) -> dict[str, float]:
    largest_class = np.bincount(labels.train).argmax()
    return {
        "probe/val_accuracy": learned.probe.validation_accuracy,
        "probe/regularisation": learned.probe.regularisation,
        "test/accuracy": learned.accuracy,
        "test/balanced_accuracy": learned.balanced_accuracy,
        "knn/val_accuracy": learned.neighbour_validation_accuracy,
        "knn/test_accuracy": learned.neighbour_accuracy,
        "random/accuracy": untrained.accuracy,
        "random/balanced_accuracy": untrained.balanced_accuracy,
        "random/knn_accuracy": untrained.neighbour_accuracy,
        "chance/accuracy": float((labels.test == largest_class).mean()),
    }


def _check_labels(dataset: Dataset) -> np.ndarray:
    """The labels; raises HptError unless they allow a split into train, validation and test."""
    if dataset.labels is None:
        raise HptError(f"data: {dataset.uri} has no labels; evaluate needs class folders, or a list with labels")
    if len(dataset.classes) < 2:
        raise HptError(f"data: {dataset.uri} has one class, {dataset.classes[0]!r}; evaluate needs at least 2")
    counts = np.bincount(dataset.labels, minlength=len(dataset.classes))
    small = np.flatnonzero(counts < SMALLEST_CLASS)
    if dataset.test is None and len(small):
        raise HptError(
            f"data: the class {dataset.classes[small[0]]!r} of {dataset.name} has {counts[small[0]]} images; a split "
            f"into train, validation and test takes {SMALLEST_CLASS}; add images, or leave the class out"
        )
    return dataset.labels


def _readable_split(dataset: Dataset, images: Images, seed: int) -> Split:
    split = dataset.split(seed)
    readable = Split(*(np.intersect1d(part, images.indices) for part in (split.train, split.validation, split.test)))
    for name in ("train", "validation", "test"):
        if not len(getattr(readable, name)):
            raise HptError(f"data: {dataset.name} leaves no readable images for {name}; add images")
    return readable
