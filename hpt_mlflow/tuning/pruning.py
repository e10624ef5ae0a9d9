"""When a trial is looked at, and who decides whether it goes on: Optuna's pruners."""

from __future__ import annotations

from optuna.pruners import BasePruner, HyperbandPruner, NopPruner, SuccessiveHalvingPruner

PRUNERS = ("halving", "hyperband", "none")


def rungs(steps: int, first: int, reduction: int) -> tuple[int, ...]:
    """Steps at which a trial is scored: the first one, each `reduction` times the one before, and the last step.

    None but the first lies in the last third of a trial: to give one up there saves too little.

    Args:
        steps: of a whole trial.
    """
    found = [first] if first < steps else []
    while found and found[-1] * reduction <= steps * 2 / 3:
        found.append(found[-1] * reduction)
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
