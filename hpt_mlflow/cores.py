"""Cores that other work takes: how threads wait there, and what a process gets of them."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

# Where a user has set one of these, nothing is changed.
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
# Work per core from which a machine counts as crowded. A stage that has just ended leaves about 1.
CROWDED = 1.25
# A process that gets less than this share of the cores that it wants is worth a line.
SMALL_SHARE = 0.45
# Less than this is not training: the process waits for a GPU, a disk or other processes.
LEAST_WANTED = 0.5
THREADS = Path("/proc/self/task")


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


def let_threads_sleep_if_crowded() -> None:
    """Set `waiting_variables` for this process and its children; before torch is imported, when OpenMP reads them."""
    # Not every system says how much it has to do.
    with suppress(AttributeError, OSError):
        os.environ.update(waiting_variables(os.environ, os.getloadavg()[0], os.cpu_count() or 1))


class CoreShare:
    """How many cores the threads of this process get, and how many they want."""

    def __init__(self) -> None:
        self._at = time.perf_counter()
        self._before = _thread_times()

    def complaint(self) -> str:
        """One line if the process got few of the cores that it wanted since the last call, else nothing.

        Only Linux says for how long threads have waited for a core; elsewhere there is never a complaint.
        """
        now, times = time.perf_counter(), _thread_times()
        pairs = [(times[thread], before) for thread, before in self._before.items() if thread in times]
        seconds = (now - self._at) * 1e9
        got, waited = (sum(after[i] - before[i] for after, before in pairs) / seconds for i in (0, 1))
        self._at, self._before = now, times
        wanted = got + waited
        if wanted < LEAST_WANTED or got >= SMALL_SHARE * wanted:
            return ""
        slept = os.environ.get("OMP_WAIT_POLICY", "").lower() == "passive"
        remedy = "OMP_NUM_THREADS=1" if slept else "OMP_WAIT_POLICY=passive or OMP_NUM_THREADS=1"
        return (
            f"the machine is busy: this process gets {got:.1f} of the {wanted:.1f} cores that its threads want; end "
            f"other work, or start again with {remedy} in the environment"
        )


def _thread_times() -> dict[str, tuple[int, int]]:
    """Nanoseconds for which each thread has run, and for which it has waited for a core."""
    times = {}
    for file in THREADS.glob("*/schedstat"):
        # A thread may have ended meanwhile.
        with suppress(OSError):
            ran, waited, _ = map(int, file.read_text().split())
            times[file.parent.name] = ran, waited
    return times
