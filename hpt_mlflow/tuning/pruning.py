"""When a trial is looked at, and who decides whether it goes on."""

from __future__ import annotations

from optuna.pruners import BasePruner, HyperbandPruner, NopPruner

from hpt_mlflow.tuning.halving import Halving

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
    """What ends a trial before its target.

    `hyperband`: Optuna's, brackets of asynchronous successive halving that begin at later and later rungs (Li et al.,
    JMLR 2018), for where first rungs mislead. `halving`: nothing, as `halving.Halving` sets the targets. `none`: every
    trial is trained in full.
    """
    if name == "hyperband" and first < steps:
        return HyperbandPruner(min_resource=first, max_resource=steps, reduction_factor=reduction)
    return NopPruner()


def make_halving(name: str, rungs: tuple[int, ...], reduction: int) -> Halving | None:
    """What sets the targets of trials; None where all have the last rung for one."""
    return Halving(rungs, reduction) if name == "halving" else None
