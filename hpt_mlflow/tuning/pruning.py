"""When a trial is looked at, and who decides whether it goes on: Optuna's pruners."""

from __future__ import annotations

from optuna.pruners import BasePruner, HyperbandPruner, NopPruner, SuccessiveHalvingPruner

PRUNERS = ("halving", "hyperband", "none")


def rungs(steps: int, first: int, reduction: int) -> tuple[int, ...]:
    """Steps at which a trial is scored: the first one, each `reduction` times the one before, and the last step.

    Args:
        steps: of a whole trial.
    """
    found = []
    step = first
    while step < steps:
        found.append(step)
        step *= reduction
    return (*found, steps)


def make_pruner(name: str, steps: int, first: int, reduction: int) -> BasePruner:
    """Optuna's pruner by our name for it.

    `halving`: asynchronous successive halving (Li et al., MLSys 2020, algorithm 2, without promotion of what was
    stopped before): at each rung, a trial goes on that is among the best 1/`reduction` of those that have come there.
    `hyperband`: brackets of it that begin at later and later rungs (Li et al., JMLR 2018), for where first rungs
    mislead. `none`: every trial is trained in full.
    """
    if name == "none" or first >= steps:
        return NopPruner()
    if name == "hyperband":
        return HyperbandPruner(min_resource=first, max_resource=steps, reduction_factor=reduction)
    return SuccessiveHalvingPruner(min_resource=first, reduction_factor=reduction)
