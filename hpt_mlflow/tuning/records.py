"""The trials of a search as plain data, for tables, figures and statistics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hpt_mlflow.augment.subset import Strengths

COMPLETE, PRUNED, FAILED, RUNNING, WAITING = "complete", "pruned", "failed", "running", "waiting"
# The reason of a trial whose process was killed. Stored, hence the word.
LOST = "its worker was lost"


@dataclass(frozen=True)
class TrialRecord:
    """The state and scores of a trial.

    Attributes:
        number: Optuna's, from 0.
        subset: the augmentations that make a view; None if they are not chosen yet.
        state: complete, pruned, failed, running or waiting.
        scores: values of the objective by steps of training; finite.
        reason: why it was pruned or failed, in words.
        run_id: of its MLflow run; empty if it has none yet.
    """

    number: int
    subset: tuple[str, ...] | None
    state: str
    scores: Mapping[int, float] = field(default_factory=dict)
    strengths: Strengths = Strengths()
    reason: str = ""
    run_id: str = ""

    @property
    def name(self) -> str:
        """The subset as text: `crop,flip`, or `none`."""
        return "?" if self.subset is None else ",".join(self.subset) or "none"

    @property
    def reached(self) -> int:
        """Steps of training at its last score; 0 for none."""
        return max(self.scores, default=0)

    @property
    def score(self) -> float:
        """Its last score; NaN for none."""
        return self.scores.get(self.reached, math.nan)


def best_trial(trials: Sequence[TrialRecord], maximise: bool) -> TrialRecord | None:
    """The best of the trials trained longest that did not fail, the earlier of equals; None without a score."""
    scored = [trial for trial in trials if trial.scores and trial.state in (COMPLETE, PRUNED)]
    longest = max((trial.reached for trial in scored), default=0)
    finalists = [trial for trial in scored if trial.reached == longest]
    return min(finalists, key=lambda trial: (-trial.score if maximise else trial.score, trial.number), default=None)
