"""What a study runs: stages, each once, however many need it; and where its points come from."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hpt_mlflow.methods import DEFAULT_METHOD

# Settings that tell the jobs of a study apart; the default method is not told.
TOLD = ("method", "update", "augment", "images")
# The setting of a stage that takes the result of the job before.
START_SETTING = {"adapt": "parent", "evaluate": "model"}


@dataclass(frozen=True)
class Job:
    """A stage to run. Two of the same kind, settings and start are the same work.

    Attributes:
        stage: pretrain, adapt or evaluate.
        items: names and values of its settings, sorted; without the one that the start gives.
        start: the job whose model it takes; None for none, or for a model that the settings name.
        whole_run: whether it takes the run of the start, with all milestones, instead of its model.
    """

    stage: str
    items: tuple[tuple[str, Any], ...]
    start: Job | None = None
    whole_run: bool = False

    @property
    def settings(self) -> dict[str, Any]:
        """Its settings by name."""
        return dict(self.items)

    @property
    def steps(self) -> int:
        """Optimiser steps of self-supervised training."""
        return int(self.settings.get("steps") or 0) if self.stage != "evaluate" else 0

    @property
    def label(self) -> str:
        """Short, for people: `adapt xrays < photos, update=bn`; the same for all seeds."""
        if self.stage == "evaluate" and self.start:
            labels = f", labels={self.settings['labels']}" if "labels" in self.settings else ""
            return f"evaluate {self.start.label}{labels}"
        if self.stage == "evaluate":
            return f"evaluate {self.settings['model']}"
        said = [(name, self.settings[name]) for name in TOLD if name in self.settings]
        more = "".join(f", {name}={value}" for name, value in said if value != DEFAULT_METHOD)
        return f"{self.stage} {self.lineage}{more}"

    @property
    def lineage(self) -> str:
        """What is learned from, newest first: `xrays < photos`."""
        before = self.start.lineage if self.start else self.settings.get("parent")
        return _short(self.settings["data"]) + (f" < {before}" if before else "")

    @property
    def name(self) -> str:
        """The label, the length of the training and the seed."""
        training = self.start if self.stage == "evaluate" else self
        length = f", {training.steps:,} steps" if training and training.steps else ""
        return f"{self.label}{length}, seed {self.settings['seed']}"


def job(stage: str, start: Job | None = None, whole_run: bool = False, **settings: Any) -> Job:
    """A job with these settings; those that are None are left to the stage."""
    items = tuple(sorted((name, value) for name, value in settings.items() if value is not None))
    return Job(stage, items, start, whole_run)


@dataclass(frozen=True)
class Point:
    """Where a score of the study comes from.

    Attributes:
        method: such as HPT, or a sequence such as B+S+T.
        condition: what the method is tried under, such as a number of labels; empty for none.
        seed: which repetition.
        evaluation: the job whose test score it is.
    """

    method: str
    condition: str
    seed: int
    evaluation: Job


@dataclass(frozen=True)
class StudyPlan:
    """Everything that a study evaluates, before it is run."""

    points: tuple[Point, ...]

    @property
    def jobs(self) -> list[Job]:
        """All jobs, each once, each behind the one that it starts from."""
        return list(dict.fromkeys(job for point in self.points for job in _chain(point.evaluation)))


def _short(address: str) -> str:
    """The end of a dataset's address, which is about its name."""
    return re.split(r"[/:]", address.partition("?")[0].rstrip("/"))[-1] or address


def _chain(last: Job) -> Iterator[Job]:
    if last.start:
        yield from _chain(last.start)
    yield last
