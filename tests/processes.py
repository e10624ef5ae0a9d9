"""Processes that tests start: gone when the test ends, however it ends; and waiting for what they do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

# Inherited by all that a test starts, also by what leaves its process group.
MARK = "HPT_TEST_OF_THIS_PROCESS"
# A machine with other work may take a hundred times as long as it should; longer than this is in vain.
PATIENCE_SECONDS = 600.0
STARTING = frozenset(["subprocess.Popen", "os.posix_spawn", "os.fork", "os.forkpty"])

_started: list[str] = []
sys.addaudithook(lambda event, _: _started.append(event) if event in STARTING else None)


@contextmanager
def processes_end_with(name: str, patched: pytest.MonkeyPatch) -> Iterator[None]:
    """Kill what was started in the block and is still there at its end."""
    mark = f"{os.getpid()}-{name}"
    patched.setenv(MARK, mark)
    _started.clear()
    try:
        yield
    finally:
        if _started and os.path.isdir("/proc/self"):
            for process in marked(mark):
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)


def marked(mark: str) -> list[int]:
    """The processes that have inherited a mark, but for this one and those that it has forked."""
    wanted, found = f"{MARK}={mark}".encode(), []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found


def wait_for(condition: Callable[[], Any], process: Any = None, seconds: float = PATIENCE_SECONDS) -> Any:
    """Wait until something holds, as long as the process lives that is to bring it about; gives what holds."""
    end = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < end, "waited in vain"
        assert process is None or process.poll() is None, "the process has ended"
        time.sleep(0.01)
    return answer


def kill_group(process: subprocess.Popen[Any], number: int) -> None:
    """Send a signal to a process and all that it has started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)
