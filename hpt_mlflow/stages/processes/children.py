"""Processes that do a part of a stage's work: told what in a file, and ended with the process that has started them."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hpt_mlflow.errors import HptError
from hpt_mlflow.signals import INTERRUPTED, end_with_parent, ignore_signals, termination_as_interrupt
from hpt_mlflow.stages.processes.launch import child_variables
from hpt_mlflow.subprocesses import start_python

JOB_FILE, ERROR_FILE, RESULT_FILE = "job.json", "error", "result.json"
# What an interrupted child may take to tell how its work ended.
GOODBYE_SECONDS = 60.0


class Children:
    """Processes of a module of ours, whose `main` is `be_child`, side by side, each at a place of its own."""

    def __init__(self, module: str, places: int, parent_run_id: str, folder: Path) -> None:
        """
        Args:
            parent_run_id: the run that theirs are nested in.
            folder: where they and this process leave word for each other.
        """
        inherited = {name: value for name, value in os.environ.items() if name != "MLFLOW_RUN_ID"}
        self._variables = inherited | child_variables(parent_run_id, places)
        self._module = module
        self._places = range(places)
        self._folder = folder
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def __len__(self) -> int:
        return len(self._processes)

    @property
    def free(self) -> list[int]:
        """Places, numbered from 0, where none is at work."""
        return [place for place in self._places if place not in self._processes]

    def start(self, place: int, said: Mapping[str, Any]) -> None:
        """Begin with a process at a free place; what an earlier one has left there is removed.

        Args:
            said: what it is told, as JSON can hold it.

        Raises:
            HptError: the process cannot be started.
        """
        folder = self._folder / str(place)
        folder.mkdir(exist_ok=True)
        for name in (ERROR_FILE, RESULT_FILE):
            (folder / name).unlink(missing_ok=True)
        (folder / JOB_FILE).write_text(json.dumps({"leader": os.getpid(), "said": dict(said)}))
        # Out of reach of a terminal's Ctrl-C, which would break off its imports with a traceback: `end` asks it to stop
        # instead.
        self._processes[place] = start_python(
            self._module,
            str(folder),
            variables=self._variables,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )

    def ended(self) -> Iterator[tuple[int, int]]:
        """Place and exit code of those that have ended since the last look.

        Raises:
            KeyboardInterrupt: one was interrupted.
        """
        for place, process in list(self._processes.items()):
            code = process.poll()
            if code is not None:
                del self._processes[place]
                if code == INTERRUPTED:
                    raise KeyboardInterrupt
                yield place, code

    def error_at(self, place: int) -> str:
        """What the last one at a place has said that it cannot do; empty for nothing."""
        file = self._folder / str(place) / ERROR_FILE
        return file.read_text() if file.exists() else ""

    def result_at(self, place: int) -> dict[str, Any]:
        """What the last one at a place, which has ended well, gave back."""
        result: dict[str, Any] = json.loads((self._folder / str(place) / RESULT_FILE).read_text())
        return result

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


@contextmanager
def children(module: str, places: int, parent_run_id: str) -> Iterator[Children]:
    """Processes that end with the block; see `Children`."""
    with tempfile.TemporaryDirectory(prefix="hpt-") as folder:
        started = Children(module, places, parent_run_id, Path(folder))
        try:
            yield started
        except KeyboardInterrupt:
            # `mlflow run` answers Ctrl-C by SIGTERM as well, which must not cut off what follows.
            ignore_signals()
            raise
        finally:
            started.end()


def be_child(folder: Path, work: Callable[[Mapping[str, Any]], Mapping[str, Any] | None]) -> int:
    """Do what the starting process has said; gives the exit code."""
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    told = json.loads((folder / JOB_FILE).read_text())
    try:
        with termination_as_interrupt(), end_with_parent(told["leader"]):
            result = work(told["said"])
        (folder / RESULT_FILE).write_text(json.dumps(result))
    except KeyboardInterrupt:
        return INTERRUPTED
    except HptError as error:
        (folder / ERROR_FILE).write_text(str(error))
        return 1
    return 0
