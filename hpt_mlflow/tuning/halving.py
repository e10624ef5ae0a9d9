"""Successive halving (Jamieson and Talwalkar, AISTATS 2016): at each rung the best 1/reduction of all go on.

Nobody goes on before it is certain to be among them, whatever those reach that are still on their way. So the same
trials go on with any number of workers, and those who come early have no advantage, as they have with Optuna's
asynchronous pruner. Who goes on does so as a new trial, from the start: with rungs that are
`reduction` times as far from each other that is a third more steps, and no state has to be kept or sent.
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
    """What the trials that do the same work, one after another, have come to.

    Attributes:
        number: of the first of them.
        scores: by steps of training, the first that was given; finite.
        target: steps that they are to reach, or have reached.
        is_open: whether one of them waits or runs.
        has_failed: whether the last of them has, for good.
    """

    number: int
    scores: Mapping[int, float]
    target: int
    is_open: bool
    has_failed: bool


@dataclass(frozen=True)
class Halving:
    """Where trials are looked at, the last rung being their whole length, and of how many there one goes on."""

    rungs: tuple[int, ...]
    reduction: int

    def target(self, trial: FrozenTrial | Trial) -> int:
        """The step at which a trial ends."""
        return int(trial.user_attrs.get(TARGET, self.rungs[0]))

    def going_on(self, trials: Mapping[Place, Sequence[FrozenTrial]], maximise: bool) -> Iterator[tuple[Place, int]]:
        """Which are to go on that do not yet, and up to which step.

        Args:
            trials: those that do the same work, by their place, in the order of their numbers.

        At a rung that is a share of all candidates, and one at least. Who is alone at two rungs in a row skips the
        first of them. In place of one that fails, the next best goes on.
        """
        candidates = {place: self._candidate(of_place) for place, of_place in trials.items()}
        quotas = [max(1, len(candidates) // self.reduction ** (level + 1)) for level in range(len(self.rungs) - 1)]
        alive = {place: candidate for place, candidate in candidates.items() if not candidate.has_failed}
        expected = len(alive)
        for level, (rung, quota) in enumerate(zip(self.rungs, quotas, strict=False)):
            there = [(place, candidate) for place, candidate in alive.items() if rung in candidate.scores]
            # Whoever is still to come, be it from a rung before, may be better than all that are there.
            missing = max(0, expected - len(there))
            sign = -1 if maximise else 1
            ranked = sorted(there, key=lambda known: (sign * known[1].scores[rung], known[1].number))
            for place, candidate in ranked[: max(0, quota - missing)]:
                if candidate.target <= rung and not candidate.is_open:
                    yield place, self.rungs[_next_level(quotas, level)]
            expected = min(quota, expected)

    def _candidate(self, trials: Sequence[FrozenTrial]) -> Candidate:
        scores: dict[int, float] = {}
        for trial in trials:
            scores = scores_of(trial) | scores
        last = trials[-1]
        has_failed = last.state == TrialState.FAIL and AGAIN not in last.user_attrs
        return Candidate(
            number=trials[0].number,
            scores=scores,
            target=max(map(self.target, trials)),
            is_open=not last.state.is_finished() or (last.state == TrialState.FAIL and not has_failed),
            has_failed=has_failed,
        )


def _next_level(quotas: Sequence[int], level: int) -> int:
    """The next rung at which not all that come there go on."""
    return next((later for later in range(level + 1, len(quotas)) if quotas[later] < quotas[level]), len(quotas))
