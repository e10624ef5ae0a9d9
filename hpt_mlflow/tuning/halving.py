"""Successive halving (Jamieson and Talwalkar, AISTATS 2016): at each rung the best 1/reduction of all trials continue.

A trial continues only once it is certain to be among them, whatever the others still to come will score. So the same
trials continue with any number of search workers, and finishing early is no advantage, as it is with Optuna's
asynchronous pruner. A trial continues as a new trial, from its first step: with rungs that grow by `reduction` that
costs a third more steps, and no state has to be stored or sent.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from optuna.trial import FrozenTrial, Trial, TrialState

from hpt_mlflow.tuning.trials import AGAIN, TARGET, scores_of

Place = TypeVar("Place", bound=Hashable)


@dataclass(frozen=True)
class Candidate:
    """The state of the trials that do the same work, one after another.

    Attributes:
        number: of the first of them.
        scores: by steps of training; finite, and the first if there are several.
        target: steps that they are to reach, or have reached.
        is_open: whether one of them waits or runs.
        has_failed: whether the last of them has failed for good.
    """

    number: int
    scores: Mapping[int, float]
    target: int
    is_open: bool
    has_failed: bool


@dataclass(frozen=True)
class Halving:
    """The steps at which trials are compared, the last being their full length, and the share that continues."""

    rungs: tuple[int, ...]
    reduction: int

    def target(self, trial: FrozenTrial | Trial) -> int:
        """The step at which a trial ends."""
        return int(trial.user_attrs.get(TARGET, self.rungs[0]))

    def promoted(self, trials: Mapping[Place, Sequence[FrozenTrial]], maximise: bool) -> Iterator[tuple[Place, int]]:
        """The places that are to continue and do not yet, each with the step that it continues to.

        Args:
            trials: those that do the same work, by their place, in the order of their numbers.

        At a rung, `1 / reduction` of all candidates continue, and at least one. If the same ones continue from two
        rungs in a row, they skip the first. The next best takes the place of one that fails.
        """
        candidates = {place: self._candidate(of_place) for place, of_place in trials.items()}
        quotas = [max(1, len(candidates) // self.reduction ** (level + 1)) for level in range(len(self.rungs) - 1)]
        alive = {place: candidate for place, candidate in candidates.items() if not candidate.has_failed}
        expected = len(alive)
        sign = -1 if maximise else 1
        for level, (rung, quota) in enumerate(zip(self.rungs, quotas, strict=False)):
            scored = {place: candidate for place, candidate in alive.items() if rung in candidate.scores}
            # Those still to come to this rung may beat all that are here.
            missing = max(0, expected - len(scored))
            ranked = sorted(scored, key=lambda place: (sign * alive[place].scores[rung], alive[place].number))
            for place in ranked[: max(0, quota - missing)]:
                if alive[place].target <= rung and not alive[place].is_open:
                    yield place, self.rungs[_next_level(quotas, level)]
            expected = min(quota, expected)

    def _candidate(self, trials: Sequence[FrozenTrial]) -> Candidate:
        scores: dict[int, float] = {}
        for trial in trials:
            scores = scores_of(trial) | scores
        last = trials[-1]
        is_retried = AGAIN in last.user_attrs
        return Candidate(
            number=trials[0].number,
            scores=scores,
            target=max(map(self.target, trials)),
            is_open=not last.state.is_finished() or (last.state == TrialState.FAIL and is_retried),
            has_failed=last.state == TrialState.FAIL and not is_retried,
        )


def _next_level(quotas: Sequence[int], level: int) -> int:
    """The next rung at which fewer continue than arrive."""
    return next((later for later in range(level + 1, len(quotas)) if quotas[later] < quotas[level]), len(quotas))
