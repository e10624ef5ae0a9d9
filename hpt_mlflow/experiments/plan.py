"""What a study runs: stages, each once, however many need it; and where its points come from."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

# The stage's own setting that takes the result of the one before.
FROM = {"adapt": "parent", "evaluate": "model"}


@dataclass(frozen=True)
class Job:
    """A stage to run. Two of the same kind, settings and start are the same work.

    Attributes:
        stage: pretrain, adapt or evaluate.
        settings: names and values, without what the start gives.
        start: whose model it takes; None for none, or for one that settings name.
        whole_run: whether it takes the start's run, with all its milestones, and not only its model.
    """

    stage: str
    settings: tuple[tuple[str, Any], ...]
    start: Job | None = None
    whole_run: bool = False

    @property
    def said(self) -> dict[str, Any]:
        """Its settings by name."""
        return dict(self.settings)

    @property
    def steps(self) -> int:
        """Optimiser steps of self-supervised training."""
        return int(self.said.get("steps") or 0) if self.stage != "evaluate" else 0

    @property
    def label(self) -> str:
        """Short, for people: `adapt xrays < photos, update=bn`; the same for all seeds."""
        if self.stage == "evaluate" and self.start:
            shown = "".join(f", {name}={self.said[name]}" for name in ("labels",) if name in self.said)
            return f"evaluate {self.start.label}{shown}"
        if self.stage == "evaluate":
            return f"evaluate {self.said['model']}"
        more = "".join(f", {name}={self.said[name]}" for name in ("update", "augment", "images") if name in self.said)
        return f"{self.stage} {self.lineage}{more}"

    @property
    def lineage(self) -> str:
        """What is learned from, newest first: `xrays < photos`."""
        before = self.start.lineage if self.start else self.said.get("parent")
        return _short(self.said["data"]) + (f" < {before}" if before else "")

    @property
    def name(self) -> str:
        """The label, and the seed."""
        return f"{self.label}, seed {self.said['seed']}"


def job(stage: str, start: Job | None = None, whole_run: bool = False, **settings: Any) -> Job:
    """A job with these settings; those that are None are left to the stage."""
    said = tuple(sorted((name, value) for name, value in settings.items() if value is not None))
    return Job(stage, said, start, whole_run)


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
        found: dict[Job, None] = {}
        for point in self.points:
            for needed in _chain(point.evaluation):
                found.setdefault(needed)
        return list(found)


def _short(address: str) -> str:
    """The end of a dataset's address, which is about its name."""
    return re.split(r"[/:]", address.partition("?")[0].rstrip("/"))[-1] or address


def _chain(last: Job) -> Iterator[Job]:
    if last.start:
        yield from _chain(last.start)
    yield last
