"""Whether the test images of a dataset are among those that the stages behind a model have trained on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from hpt_mlflow.data.dataset import Dataset
from hpt_mlflow.data.fingerprints import UNKNOWN
from hpt_mlflow.errors import HptError
from hpt_mlflow.evaluation.protocols import Task
from hpt_mlflow.settings import EvaluateSettings
from hpt_mlflow.tracking.lineage import Node, stages_behind
from hpt_mlflow.tracking.seen_images import seen_images

# Two datasets may share an image by chance; more than this share of the test images is a test on what was learned.
SEEN_LIMIT = 0.01


class Overlap(NamedTuple):
    """What a stage has trained on of the test images.

    Attributes:
        stage: of the chain behind the model.
        seen: how many of the test images; an estimate where the stage kept a sample of what it saw.
        of: how many test images are known.
        too_many: whether these are more than `SEEN_LIMIT` of them.
        same_dataset: whether the stage learned from the dataset itself, split otherwise.
        sampled: whether `seen` is an estimate.
    """

    stage: Node
    seen: int
    of: int
    too_many: bool
    same_dataset: bool
    sampled: bool

    def __str__(self) -> str:
        about = "about " if self.sampled else ""
        return f"{about}{self.seen} of {self.of} test images"


def overlaps(model: str, dataset: Dataset, split_seed: int, test_content: np.ndarray) -> Iterator[Overlap]:
    """Compare with each stage of the chain behind a model that may have seen some of the test images.

    Args:
        test_content: the fingerprints of the test images, int64 (N,).

    Of a dataset too large to look at every image, a sample of the fingerprints is known. Then the number is estimated,
    and has to be above the limit by more than chance (two standard deviations) before it is too many.
    """
    known = test_content[test_content != UNKNOWN]
    for stage in stages_behind(model):
        same = stage.dataset_digest == dataset.digest
        if same and (dataset.test is not None or stage.split_seed == split_seed):
            continue  # It has kept to the same split.
        kept = seen_images(stage.run_id) if stage.run_id else None
        found = int(np.isin(known, kept.fingerprints).sum()) if kept is not None else len(known) * same
        share = kept.share if kept is not None and found else 1.0
        limit = SEEN_LIMIT * share * len(known)
        too_many = found > limit + 2 * np.sqrt(limit * (1 - share))
        yield Overlap(stage, min(len(known), round(found / share)), len(known), bool(too_many), same, share < 1)


def check_unseen(settings: EvaluateSettings, model: str, dataset: Dataset, task: Task) -> int:
    """How many test images a stage of the chain behind a model has trained on.

    Raises:
        HptError: more than `SEEN_LIMIT` of them, and the settings do not allow it.
    """
    most = 0
    for overlap in overlaps(model, dataset, settings.split_seed, task.part_content(task.split.test)):
        most = max(most, overlap.seen)
        if overlap.too_many and not settings.allow_seen:
            stage = overlap.stage
            cure = (
                f"use --split-seed {stage.split_seed}, as it did"
                if overlap.same_dataset
                else "keep test images out of training: give the stage the labelled address, and the same --split-seed"
            )
            raise HptError(
                f"data: {overlap} of {dataset.name} were trained on by {stage.stage} "
                f"{stage.dataset_name} (run {stage.run_id}); {cure}; or --allow-seen to have the figure all the same"
            )
    return most
