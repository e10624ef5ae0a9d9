"""Whether test images are near copies of what the stages behind a model have trained on, for a warning."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hpt_mlflow.data.perceptual import HASHED, MIRROR_HASHED, certain_bits, frequencies, phash, thumbnail
from hpt_mlflow.errors import printable
from hpt_mlflow.evaluation.task import Task
from hpt_mlflow.inspection.hash_search import HashTable
from hpt_mlflow.pixels import shown
from hpt_mlflow.stages.evaluation.unseen import Overlap, Overlaps

# Least distance of a frequency from the median that makes its bit certain (see `data.perceptual.certain_bits`).
MARGIN = 0.1
EXAMPLES = 3


@dataclass(frozen=True)
class NearSeen:
    """Test images that look like images that a stage has trained on, but are not the same to the byte.

    Attributes:
        indices: of the test images, int64.
        of: how many were compared.
    """

    overlap: Overlap
    indices: np.ndarray
    of: int

    def describe(self, task: Task) -> str:
        """The warning."""
        dataset, stage = task.reader.images.dataset, self.overlap.stage
        names = ", ".join(printable(str(dataset.names[i])) for i in self.indices[:EXAMPLES])
        more = ", ..." if len(self.indices) > EXAMPLES else ""
        return (
            f"{len(self.indices)} of {self.of} test images of {dataset.name} look like images that {stage.stage} "
            f"{stage.dataset_name} (run {stage.run_id}) has trained on ({names}{more}): re-encoded, resized or "
            "mirrored copies make a score too high; `hpt inspect` shows them side by side"
        )


def near_seen(found: Overlaps, task: Task) -> list[NearSeen]:
    """What each stage that kept hashes has seen, oldest last; found for re-encoded, resized and mirrored copies.

    Images that a stage has seen to the byte are not counted.
    """
    stages = [overlap for overlap in found.stages if overlap.kept.hashes is not None]
    if not stages:
        return []
    test, images = task.split.test, task.reader.images
    thumbnails = {
        i: thumbnail(shown(image)) for i in test.tolist() if not isinstance(image := task.reader.read(i), str)
    }
    images.check_unreadable()
    versions = []
    if thumbnails:
        found_here = frequencies(np.stack(list(thumbnails.values())), lowest=HASHED)
        versions = [(phash(each), certain_bits(each, MARGIN)) for each in (found_here, found_here * MIRROR_HASHED)]
    readable = np.array(list(thumbnails), np.int64)
    seen_here = []
    for overlap in stages:
        assert overlap.kept.hashes is not None
        table = HashTable(overlap.kept.hashes)
        new = ~np.isin(task.part_content(readable), overlap.kept.contents)
        near = [
            row
            for row in np.flatnonzero(new).tolist()
            if any(table.match(values[row], certain[row]) for values, certain in versions)
        ]
        seen_here.append(NearSeen(overlap, readable[near], int(new.sum())))
    return seen_here
