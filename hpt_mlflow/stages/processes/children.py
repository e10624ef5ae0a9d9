"""Processes that do a part of a stage's work. Parent and child talk by files in a folder of the child:

job.json       {"parent": PID, "job": ...}
result.json    what the work returned
error.json     {"problem", "remedy", "setting", "lost"} of the HptError that ended the work
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

from hpt_mlflow.errors import HptError
from hpt_mlflow.group import SIDE_BY_SIDE, LostProcessError, end_if_abandoned, is_first, side_by_side
from hpt_mlflow.signals import INTERRUPTED, end_with_parent, ignore_signals, termination_as_interrupt
from hpt_mlflow.subprocesses import start_python
from hpt_mlflow.tracking.runs.nesting import current_run_id, nested_environment

# The module of a process that runs one stage; its job is `{"stage": NAME, "settings": {...}}`.
STAGE_PROCESS = "hpt_mlflow.stages.processes.stage_process"
JOB_FILE, RESULT_FILE, ERROR_FILE = "job.json", "result.json", "error.json"
# What an interrupted child may take to end its work in order.
GOODBYE_SECONDS = 60.0


class Ended(NamedTuple):
    """A child that has ended.

    Attributes:
        place: that it had.
        code: its exit code; -N if signal N ended it.
        result: what its work returned; None if it failed.
        error: why it failed, if the child itself knew.
    """

    place: int
    code: int
    result: Any
    error: HptError | None

    @property
    def how(self) -> str:
        """How a child that failed has ended, for messages."""
        if self.code < 0:
            with suppress(ValueError):
                return f"was ended by {signal.Signals(-self.code).name}"
        return f"ended with exit code {self.code}; see its messages above"


class Children:
    """Processes that run a module whose `__main__` is `be_child`, side by side, each at a numbered place."""

    def __init__(
        self, module: str, places: int, parent_run_id: str | None, folder: Path, one_training: bool = False
    ) -> None:
        self._module = module
        self._folder = folder
        # PyTorch's own choice is all cores for each process.
        threads = {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // places))}
        self._variables = nested_environment(parent_run_id or current_run_id() or "") | threads
        if not one_training:
            self._variables |= {SIDE_BY_SIDE: str(places * side_by_side())}
        self._places = range(places)
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def __len__(self) -> int:
        return len(self._processes)

    @property
    def free(self) -> list[int]:
        """Places, numbered from 0, without a process."""
        return [place for place in self._places if place not in self._processes]

    def start(self, place: int, job: Any, variables: Mapping[str, str] | None = None) -> None:
        """Start a process at a free place.

        Args:
            job: what its work gets, as JSON.
            variables: added to its environment.

        Raises:
            HptError: the process cannot be started.
        """
        folder = self._folder / str(place)
        folder.mkdir(exist_ok=True)
        for name in (ERROR_FILE, RESULT_FILE):
            (folder / name).unlink(missing_ok=True)
        (folder / JOB_FILE).write_text(json.dumps({"parent": os.getpid(), "job": job}))
        # In a session of its own, as a terminal's Ctrl-C would break off its imports with a traceback; `end` stops it.
        self._processes[place] = start_python(
            self._module,
            str(folder),
            variables={**os.environ, **self._variables, **(variables or {})},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )

    def ended(self) -> list[Ended]:
        """The processes that have ended since the last call.

        Raises:
            KeyboardInterrupt: one was interrupted.
        """
        codes = {place: code for place, process in self._processes.items() if (code := process.poll()) is not None}
        for place in codes:
            del self._processes[place]
        if INTERRUPTED in codes.values():
            raise KeyboardInterrupt
        return [Ended(place, code, *self._outcome(place)) for place, code in codes.items()]

    def send_signal(self, place: int, number: int) -> None:
        """Send a signal to the process at a place, if there is one."""
        if process := self._processes.get(place):
            process.send_signal(number)

    def end(self) -> None:
        """Ask all to stop, and wait until they have; kill those that do not."""
        for process in self._processes.values():
            process.terminate()
        end = time.monotonic() + GOODBYE_SECONDS
        for process in self._processes.values():
            try:
                process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()

    def _outcome(self, place: int) -> tuple[Any, HptError | None]:
        result, error = (self._folder / str(place) / name for name in (RESULT_FILE, ERROR_FILE))
        if error.exists():
            said = json.loads(error.read_text())
            return None, (LostProcessError if said.pop("lost") else HptError)(**said)
        return json.loads(result.read_text()) if result.exists() else None, None


@contextmanager
def children(
    module: str, places: int, parent_run_id: str | None = None, one_training: bool = False
) -> Iterator[Children]:
    """Processes that end with the block.

    Args:
        module: is run in each; see `Children`.
        places: the most processes at once; they share the cores.
        parent_run_id: the run that theirs are nested in. Default: the run around this place, if any.
        one_training: whether they train together, and not each for itself.
    """
    with tempfile.TemporaryDirectory(prefix="hpt-") as folder:
        started = Children(module, places, parent_run_id, Path(folder), one_training)
        try:
            yield started
        except KeyboardInterrupt:
            # `mlflow run` answers Ctrl-C by SIGTERM as well, which must not cut off what follows.
            ignore_signals()
            raise
        finally:
            started.end()


def be_child(work: Callable[[Any], Any]) -> int:
    """Do the job that the parent has left in the folder named on the command line; gives the exit code.

    Args:
        work: gets the job, and returns its result; both as JSON.
    """
    try:
        code = _do_job(work, Path(sys.argv[1]))
    except Exception:
        traceback.print_exc()
        code = 1
    end_if_abandoned(code)
    return code


def _do_job(work: Callable[[Any], Any], folder: Path) -> int:
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING if is_first() else logging.ERROR)
    order = json.loads((folder / JOB_FILE).read_text())
    try:
        with termination_as_interrupt(), end_with_parent(order["parent"]):
            result = work(order["job"])
        (folder / RESULT_FILE).write_text(json.dumps(result))
    except KeyboardInterrupt:
        return INTERRUPTED
    except HptError as error:
        lost = isinstance(error, LostProcessError)
        said = {"problem": error.problem, "remedy": error.remedy, "setting": error.setting, "lost": lost}
        (folder / ERROR_FILE).write_text(json.dumps(said))
        return 1
    return 0
