"""How many cores a process may use, and how threads wait where there is more work than cores."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

# What a container may use: microseconds of processor time in a period, and the period (cgroups v2).
QUOTA = Path("/sys/fs/cgroup/cpu.max")
# Where a user has set one of these, nothing is changed.
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
# Work per core from which a machine counts as crowded. A stage that has just ended leaves about 1.
CROWDED = 1.25


def available_cores() -> int:
    """The cores that this process may use: of the machine, or fewer by its affinity or by its container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # There is no quota, or it is called "max".
    with suppress(OSError, ValueError):
        quota, period = map(int, QUOTA.read_text().split())
        cores = min(cores, max(1, quota // period))
    return cores


def waiting_variables(variables: Mapping[str, str], load: float, cores: int) -> dict[str, str]:
    """What to add to an environment so that threads sleep while they wait, where a machine is crowded.

    Threads of OpenMP spin between two pieces of work. That is fastest while each has a core, and takes the cores from
    the threads that are waited for where others run there too.

    Args:
        load: processes that run or want to, all over the machine.
        cores: of the machine.
    """
    crowded = load > CROWDED * cores
    return {"OMP_WAIT_POLICY": "passive"} if crowded and not any(name in variables for name in WAITING) else {}


def fit_threads() -> None:
    """Let threads suit the machine, in this process and its children; before torch is imported, when OpenMP is told."""
    machine, mine = os.cpu_count() or 1, available_cores()
    # OpenMP knows the affinity of a process, but not the quota of its container.
    if mine < machine:
        os.environ.setdefault("OMP_NUM_THREADS", str(mine))
    # Not every system says how much it has to do.
    with suppress(AttributeError, OSError):
        os.environ.update(waiting_variables(os.environ, os.getloadavg()[0], machine))
