"""Processes that do a part of a stage's work: told what in a file, and ended with the process that has started them."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from hpt_mlflow.errors import HptError
from hpt_mlflow.signals import INTERRUPTED, end_with_parent, termination_as_interrupt

JOB_FILE, ERROR_FILE, RESULT_FILE = "job.json", "error", "result.json"
# What an interrupted child may take to tell how its work ended.
GOODBYE_SECONDS = 60.0


def start_child(
    module: str, folder: Path, said: Mapping[str, Any], variables: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Run a module of ours, whose `main` is `be_child`, in a process of its own.

    Args:
        folder: where the two leave word for each other; what an earlier child has left is removed.
        said: what it is told, as JSON can hold it.
        variables: its whole environment.
    """
    folder.mkdir(exist_ok=True)
    for name in (ERROR_FILE, RESULT_FILE):
        (folder / name).unlink(missing_ok=True)
    (folder / JOB_FILE).write_text(json.dumps({"leader": os.getpid(), "said": dict(said)}))
    # Out of reach of a terminal's Ctrl-C, which would break off its imports with a traceback: `end_children` asks it to
    # stop instead.
    return subprocess.Popen(
        [sys.executable, "-m", module, str(folder)], env=variables, stdin=subprocess.DEVNULL, start_new_session=True
    )


def error_of(folder: Path) -> str:
    """What a child has said that it cannot do; empty for nothing."""
    file = folder / ERROR_FILE
    return file.read_text() if file.exists() else ""


def result_of_child(folder: Path) -> dict[str, Any]:
    """What a child that has ended well gave back."""
    result: dict[str, Any] = json.loads((folder / RESULT_FILE).read_text())
    return result


def end_children(processes: Iterable[subprocess.Popen[bytes]]) -> None:
    """Ask all to stop, and wait until they have; kill those that do not."""
    processes = list(processes)
    for process in processes:
        process.terminate()
    end = time.monotonic() + GOODBYE_SECONDS
    for process in processes:
        try:
            process.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


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
