"""From the settings of an evaluation to its task: labels checked, split and drawn from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from hpt_mlflow.augment.crop import smallest_useful_side
from hpt_mlflow.data.contents import UNKNOWN
from hpt_mlflow.data.dataset import Dataset
from hpt_mlflow.data.images import Images
from hpt_mlflow.data.labels import check_labels
from hpt_mlflow.data.split import Split
from hpt_mlflow.data.statistics import ChannelStatistics
from hpt_mlflow.errors import HptError
from hpt_mlflow.evaluation.features import FeatureReader
from hpt_mlflow.evaluation.labelled_views import CROP_SCALE
from hpt_mlflow.evaluation.task import Task
from hpt_mlflow.models.checkpoint import BackboneCard
from hpt_mlflow.settings import EvaluateSettings
from hpt_mlflow.settings.common import parse_count
from hpt_mlflow.stages.processes.device import resolve_device

# HPT, section 4.2.
LABELS_FOR_FINETUNE = 1000
# Networks trained on crops are tested on the centre of images resized by this factor (HPT, section 4.1: 256 for 224).
TEST_RESIZE = 256 / 224


def prepare_task(settings: EvaluateSettings, dataset: Dataset, card: BackboneCard) -> Task:
    """Check the labels, decode what fits into memory, and split what can be read.

    Raises:
        HptError: the labels cannot be learned from, chosen by or tested on; too many images are unreadable.
    """
    device = resolve_device(settings.device)
    split = dataset.split(settings.split_seed)
    cropped = settings.protocol != "fast"
    side = smallest_useful_side(card.architecture.image_size, CROP_SCALE) if cropped else card.architecture.image_size
    images = Images(dataset, split.labelled, side, cache_gib=settings.cache_gib)
    readable = split.restricted(images.indices)
    labels = check_labels(dataset, readable)
    # What is evaluated is what is served: images are normalised as the model was trained, whatever the dataset.
    statistics = ChannelStatistics(card.mean, card.std)
    resize_to = round(card.architecture.image_size * TEST_RESIZE) if cropped else None
    reader = FeatureReader(
        images, card.architecture.image_size, statistics, device, settings.batch_size, settings.workers, resize_to
    )
    content = dataset.contents.of(images.indices)
    readable = _without_test_images(readable, content[np.searchsorted(images.indices, readable.test)], dataset)
    count = label_count(settings, len(readable.train))
    task = Task(reader, readable, labels, dataset.classes, content, count)
    task.with_drawn_labels(settings.seed)  # What cannot be drawn is refused here, before any run is started.
    return task


def _without_test_images(split: Split, tested: np.ndarray, dataset: Dataset) -> Split:
    """The split without images to learn from or choose by that are also in test.

    There are none but in a dataset so large that its split compares a sample only.

    Args:
        tested: contents of the test images, int64 (N,).
    """
    tested = tested[tested != UNKNOWN]
    train, validation = (part[~np.isin(dataset.contents.of(part), tested)] for part in (split.train, split.validation))
    return replace(split, train=train, validation=validation)


def label_count(settings: EvaluateSettings, train_images: int) -> int | float | None:
    """How many labels may be learned from: a number, a fraction of train, or None for all of train.

    Raises:
        HptError: what the user says is no such number, or there are not so many.
    """
    text = settings.labels
    if text is None:
        few = settings.protocol == "finetune" and train_images > LABELS_FOR_FINETUNE
        return LABELS_FOR_FINETUNE if few else None
    count = parse_count("labels", text)
    if isinstance(count, int) and count > train_images:
        raise HptError(f"labels: {count} is more than the {train_images} images of train; lower it, or leave it out")
    return count
