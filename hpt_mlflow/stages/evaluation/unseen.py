"""Whether the test images of a dataset are among those that the stages behind a model have trained on."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hpt_mlflow.data.contents import UNKNOWN
from hpt_mlflow.data.dataset import Dataset
from hpt_mlflow.errors import HptError
from hpt_mlflow.evaluation.task import Task
from hpt_mlflow.settings import EvaluateSettings
from hpt_mlflow.tracking.models.lineage import Node, lineage, what_is_unknown
from hpt_mlflow.tracking.models.seen_images import NotKeptError, SeenImages, seen_images

# Two datasets may share an image by chance; more than this share of the test images is a test on what was learned.
SEEN_LIMIT = 0.01


class Overlap(NamedTuple):
    """The test images that a stage has trained on.

    Attributes:
        stage: of the chain behind the model.
        seen: how many of the test images; an estimate if the stage kept a sample of what it saw.
        of: how many test images are known.
        too_many: whether these are more than `SEEN_LIMIT` of them.
        same_dataset: whether the stage learned from the dataset itself, split otherwise.
        sampled: whether `seen` is an estimate.
        kept: what the stage kept of all that it saw.
    """

    stage: Node
    seen: int
    of: int
    too_many: bool
    same_dataset: bool
    sampled: bool
    kept: SeenImages

    def __str__(self) -> str:
        about = "about " if self.sampled else ""
        return f"{about}{self.seen} of {self.of} test images"


class Overlaps(NamedTuple):
    """The test images that the chain behind a model has trained on, as far as known.

    Attributes:
        stages: the stages that can be checked, newest first.
        unknown: why the rest of the chain cannot be checked; empty if all of it can.
    """

    stages: tuple[Overlap, ...]
    unknown: str

    @property
    def seen(self) -> int | None:
        """The most that a stage has seen; None if some stage cannot be checked."""
        return None if self.unknown else max((overlap.seen for overlap in self.stages), default=0)


def overlaps(model: str, dataset: Dataset, test_content: np.ndarray) -> Overlaps:
    """Compare with each stage of the chain behind a model, by content alone.

    Args:
        test_content: the contents of the test images, int64 (N,).
    """
    stages = lineage(model, with_evaluations=False)
    known = test_content[test_content != UNKNOWN]
    found, unknown = [], [what_is_unknown(stages)]
    for stage in stages:
        if not stage.trained:
            continue
        try:
            if stage.run_id is None:
                raise NotKeptError(f"the run that made {stage.address} is gone")
            found.append(_overlap(stage, seen_images(stage.run_id), known, stage.dataset_digest == dataset.digest))
        except NotKeptError as error:
            unknown.append(str(error))
    return Overlaps(tuple(found), "; ".join(filter(None, unknown)))


def _overlap(stage: Node, kept: SeenImages, known: np.ndarray, same_dataset: bool) -> Overlap:
    """Compare with the known images of a stage, which are a sample if its dataset is too large to look at all.

    Then the number is estimated, and has to be above the limit by two standard deviations before it is too many.
    """
    found, share = int(np.isin(known, kept.contents).sum()), kept.share
    limit = SEEN_LIMIT * share * len(known)
    too_many = found > limit + 2 * np.sqrt(limit * (1 - share))
    seen = min(len(known), round(found / share))
    return Overlap(stage, seen, len(known), bool(too_many), same_dataset, share < 1, kept)


def check_unseen(settings: EvaluateSettings, model: str, dataset: Dataset, task: Task) -> Overlaps:
    """How many test images the chain behind a model has trained on.

    Raises:
        HptError: more than `SEEN_LIMIT` of them, or an unknown number, and the settings do not allow it.
    """
    found = overlaps(model, dataset, task.part_content(task.split.test))
    if settings.allow_seen:
        return found
    overlap = next((overlap for overlap in found.stages if overlap.too_many), None)
    if overlap is not None:
        stage = overlap.stage
        remedy = (
            f"use --split-seed {stage.split_seed}, as it did"
            if overlap.same_dataset
            else "keep test images out of training: give the stage the labelled address, and the same --split-seed"
        )
        raise HptError(
            f"{overlap} of {dataset.name} were trained on by {stage.stage} {stage.dataset_name} (run {stage.run_id})",
            f"{remedy}; or --allow-seen to evaluate all the same",
            setting="data",
        )
    if found.unknown:
        raise HptError(
            f"whether test images of {dataset.name} were trained on cannot be checked, because {found.unknown}",
            "train the missing stage again, or use --allow-seen if you know that they were not",
            setting="data",
        )
    return found
