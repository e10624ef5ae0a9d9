"""What a run records about its data: what was left out, duplicates, and unreadable images."""

from __future__ import annotations

from typing import Any

import numpy as np

from hpt_mlflow.data.account import LeftOut
from hpt_mlflow.data.dataset import MOST, Dataset
from hpt_mlflow.data.images import Images
from hpt_mlflow.data.pixel_range import lost_depth
from hpt_mlflow.data.split import NO_LABEL, Split
from hpt_mlflow.errors import printable
from hpt_mlflow.tracking import tags as tag
from hpt_mlflow.tracking.runs.stage_run import StageRun

EXAMPLES = 5


def report_data(run: StageRun, dataset: Dataset, split: Split) -> dict[str, float]:
    """Warn of what was left out, of duplicates and of lost depth; list them in a table of the run.

    Returns:
        The metrics that were logged.
    """
    account = [*dataset.left_out, *_identical(dataset, split)]
    counts = {
        "data/left_out": float(sum(entry.count for entry in dataset.left_out)),
        "data/identical_images": float(len(dataset.identical)),
    }
    run.metrics(counts, 0)
    if dataset.multilabel:
        run.tags({tag.LABELS: ", ".join(dataset.classes)})
    if warning := lost_depth(dataset, np.concatenate([split.seen, split.test])):
        run.warn(f"data: {warning}")
    for entry in account:
        run.warn(f"data: of {dataset.name}, {entry}")
    if account:
        columns: dict[str, list[Any]] = {
            "what": [entry.what for entry in account],
            "count": [entry.count for entry in account],
            "examples": [", ".join(entry.examples) for entry in account],
            "why": [entry.why for entry in account],
        }
        run.table(columns, "data_account.json")
    return counts


def report_unreadable(run: StageRun, images: Images, step: int) -> dict[str, float]:
    """Count the images that were skipped, and name them in a table of the run."""
    count = {"data/unreadable_images": float(len(images.unreadable))}
    run.metrics(count, step)
    if images.unreadable:
        names = [printable(str(images.dataset.names[i])) for i in images.unreadable]
        run.table({"image": names, "reason": list(images.unreadable.values())}, "unreadable_images.json")
    return count


def _identical(dataset: Dataset, split: Split) -> list[LeftOut]:
    """Duplicate images, and how they are treated."""
    if not len(dataset.identical):
        return []
    among = f" among the {len(dataset.compared)} that were compared" if len(dataset) > MOST else ""
    in_no_part = np.setdiff1d(dataset.identical, np.concatenate([split.seen, split.test]))
    return [
        entry
        for entry in (
            _entry(dataset, "images identical to another one" + among, dataset.identical, "they are in one part"),
            _entry(dataset, "images identical to one of the test part", in_no_part, "left out of training"),
            _entry(dataset, "identical images with different labels", _contradictory(dataset), "look at them"),
        )
        if entry.count
    ]


def _contradictory(dataset: Dataset) -> np.ndarray:
    """Images, int64, that are identical to an earlier one and have another label."""
    if dataset.labels is None:
        return np.array([], np.int64)
    contents = dataset.contents.of(dataset.compared)
    first, of_image = np.unique(contents, return_index=True, return_inverse=True)[1:]
    labels = dataset.labels[dataset.compared].reshape(len(contents), -1)
    others = labels[first][of_image.reshape(-1)]
    differs = (labels != others).any(axis=1) & ~((labels == NO_LABEL) | (others == NO_LABEL)).any(axis=1)
    return np.intersect1d(dataset.compared[differs], dataset.identical)


def _entry(dataset: Dataset, what: str, indices: np.ndarray, why: str) -> LeftOut:
    return LeftOut(what, len(indices), tuple(printable(str(dataset.names[i])) for i in indices[:EXAMPLES]), why)
