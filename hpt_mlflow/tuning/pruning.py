"""The steps at which trials are scored, and the rules by which they continue."""

from __future__ import annotations

from optuna.pruners import BasePruner, HyperbandPruner, NopPruner

from hpt_mlflow.tuning.halving import Halving


def rungs(steps: int, first: int, reduction: int) -> tuple[int, ...]:
    """Steps at which a trial is scored: the first, each `reduction` times the one before, and the last step.

    Apart from the first, none lies in the last third of a trial: pruning there saves too little.

    Args:
        steps: of a whole trial.
    """
    early = [first] if first < steps else []
    while early and early[-1] * reduction <= steps * 2 / 3:
        early.append(early[-1] * reduction)
    return (*early, steps)


def make_pruner(name: str, steps: int, first: int, reduction: int) -> BasePruner:
    """What ends a trial before its target.

    `hyperband`: Optuna's, brackets of asynchronous successive halving that begin at later and later rungs (Li et al.,
    JMLR 2018), in case the first rungs mislead. `halving`: nothing, as `halving.Halving` sets the targets. `none`:
    nothing, so that every trial is trained in full.
    """
    if name == "hyperband" and first < steps:
        return HyperbandPruner(min_resource=first, max_resource=steps, reduction_factor=reduction)
    return NopPruner()


def make_halving(name: str, rungs: tuple[int, ...], reduction: int) -> Halving | None:
    """What sets the targets of trials; None if each is trained to the last rung unless pruned."""
    return Halving(rungs, reduction) if name == "halving" else None
