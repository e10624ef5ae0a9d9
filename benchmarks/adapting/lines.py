"""What `measure.py run` has written: its trainings, and the milestone that a stage would take of each."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from hpt_mlflow.evaluation.objectives import OBJECTIVES, load_judge
from hpt_mlflow.stages.training.judging import JudgedMilestones, worse_than_parent

Line = dict[str, Any]
DEFAULT = "gentle"
LABEL_FREE = "consistency"
# After the name of a judge: without its check.
ALONE = " alone"
BY_LABELS = "knn"
# What a line says of its training rather than of a milestone.
TRAINING = ("base", "target", "recipe", "steps", "seed")


def taken(training: list[Line], judge: str, times: float = 1.0) -> Line:
    """The milestone that a stage takes by a judge, with its noise multiplied by `times`; or without its check."""
    name = judge.removesuffix(ALONE)
    parent, by_step = training[0], {line["step"]: line for line in training}
    check = OBJECTIVES[name].checked_by if name == judge and name in OBJECTIVES else ""
    # The first trainings have only the scores of the same objective as a judge of its own.
    column = f"check_{name}" if f"check_{name}" in parent else check
    refused = frozenset[int]()
    if check and column in parent:
        telling = load_judge(check).chance + 2 * parent[f"noise_{column}"]
        refused = worse_than_parent({step: line[column] for step, line in by_step.items()}, telling)
    scores = {step: line[name] for step, line in by_step.items()}
    return by_step[JudgedMilestones(name, scores, times * parent.get(f"noise_{name}", 0.0), refused).best]


def trainings(files: Iterable[Path]) -> list[list[Line]]:
    """Lines that belong together, in the order in which they were written."""
    found: dict[tuple[str, ...], list[Line]] = defaultdict(list)
    for file in files:
        for text in file.read_text().splitlines():
            line = json.loads(text)
            found[tuple(str(line[name]) for name in TRAINING)].append(line)
    return list(found.values())


def defaults(files: Iterable[Path], bases: Collection[str] = ()) -> list[list[Line]]:
    """The milestones of the trainings with the defaults in which all judges that decide have scored.

    Args:
        bases: to start from; empty for all.
    """
    every = [milestones(training) for training in trainings(files) if training[0]["recipe"] == DEFAULT]
    every = [training for training in every if not bases or training[0]["base"] in bases]
    return [training for training in every if {LABEL_FREE, BY_LABELS, "probe"} <= training[0].keys()]


def milestones(training: list[Line]) -> list[Line]:
    """The parent and the milestones, without variants."""
    return [line for line in training if not line["variant"]]
