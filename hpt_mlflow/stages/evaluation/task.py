"""From the settings of an evaluation to its task: labels checked, split and drawn from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from hpt_mlflow.augment.crop import smallest_useful_side
from hpt_mlflow.data.contents import UNKNOWN
from hpt_mlflow.data.dataset import Dataset
from hpt_mlflow.data.images import Images
from hpt_mlflow.data.labels import check_labels
from hpt_mlflow.data.pixel_range import pixels_for
from hpt_mlflow.data.split import Split
from hpt_mlflow.data.statistics import ChannelStatistics
from hpt_mlflow.errors import HptError
from hpt_mlflow.evaluation.features import FeatureReader, feature_precision
from hpt_mlflow.evaluation.labelled_views import CROP_SCALE
from hpt_mlflow.evaluation.protocols import PROTOCOLS
from hpt_mlflow.evaluation.task import Task
from hpt_mlflow.models.checkpoint import BackboneCard
from hpt_mlflow.settings import EvaluateSettings
from hpt_mlflow.settings.common import parse_count
from hpt_mlflow.stages.processes.device import resolve_device

# Networks trained on crops are tested on the centre of images resized by this factor (HPT, section 4.1: 256 for 224).
TEST_RESIZE = 256 / 224


def prepare_task(settings: EvaluateSettings, dataset: Dataset, card: BackboneCard) -> Task:
    """Check the labels, decode as many images as fit into memory, and split the readable ones.

    Raises:
        HptError: the labels cannot be learned from, chosen by or tested on; too many images are unreadable.
    """
    device, protocol, size = resolve_device(settings.device), PROTOCOLS[settings.protocol], card.architecture.image_size
    split = dataset.split(settings.split_seed)
    side = smallest_useful_side(size, CROP_SCALE) if protocol.random_crops else size
    images = Images(
        dataset, split.labelled, side, cache_gib=settings.cache_gib, pixels=pixels_for(dataset, card.pixels)
    )
    readable = split.restricted(images.indices)
    labels = check_labels(dataset, readable)
    # A network that is trained on changes, so that its validation has the precision of its training.
    automatic = "float32" if protocol.trains_backbone else feature_precision("auto", device)
    reader = FeatureReader(
        images,
        size,
        # As served: images are normalised as for the training of the model, whatever the dataset.
        ChannelStatistics(card.mean, card.std),
        device,
        settings.batch_size,
        threads=settings.workers,
        resize_to=round(size * TEST_RESIZE) if protocol.random_crops else None,
        precision=automatic if settings.precision == "auto" else settings.precision,
    )
    content = dataset.contents.of(images.indices)
    readable = _without_test_images(readable, content[np.searchsorted(images.indices, readable.test)], dataset)
    count = label_count(settings, len(readable.train))
    task = Task(reader, readable, labels, dataset.classes, content, count)
    task.with_drawn_labels(settings.seed)  # Refuses what cannot be drawn before any run is started.
    return task


def _without_test_images(split: Split, tested: np.ndarray, dataset: Dataset) -> Split:
    """The split without train and validation images that are also in test.

    Only a dataset so large that its split compares a sample has any.

    Args:
        tested: contents of the test images, int64 (N,).
    """
    tested = tested[tested != UNKNOWN]
    train, validation = (part[~np.isin(dataset.contents.of(part), tested)] for part in (split.train, split.validation))
    return replace(split, train=train, validation=validation)


def label_count(settings: EvaluateSettings, train_images: int) -> int | float | None:
    """How many labels may be learned from: a number, a fraction of train, or None for all of train.

    Raises:
        HptError: the setting is not such a number, or larger than train.
    """
    if settings.labels is None:
        default = PROTOCOLS[settings.protocol].default_labels
        return default if default is not None and default < train_images else None
    count = parse_count("labels", settings.labels)
    if isinstance(count, int) and count > train_images:
        problem = f"{count} is more than the {train_images} images of train"
        raise HptError(problem, "lower it, or leave it out", setting="labels")
    return count
