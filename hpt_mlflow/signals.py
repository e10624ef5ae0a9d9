"""What the operating system asks of a process, and how a training answers between two steps."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

PARENT_POLL_SECONDS = 1.0
# What shells report of a program that Ctrl-C ended.
INTERRUPTED = 130
# A shell that `mlflow run` starts us in may stand between.
SHELLS = frozenset({"sh", "bash", "dash", "zsh"})
WARNING = getattr(signal, "SIGUSR1", None)


@dataclass
class Requests:
    """What signals have asked for.

    Attributes:
        stop: SIGINT or SIGTERM came: keep the training state and end.
        keep: SIGUSR1 came, as schedulers send it some time before they end a job: keep the training state and go on.
    """

    stop: bool = False
    keep: bool = False


@contextmanager
def signals_as_requests() -> Iterator[Requests]:
    """Take signals as requests that the block looks at when it suits. A second Ctrl-C does not wait for that."""
    requests = Requests()
    interrupts = 0

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal interrupts
        interrupts += number == signal.SIGINT
        if interrupts > 1:
            raise KeyboardInterrupt
        requests.stop = True

    def keep(number: int, frame: FrameType | None) -> None:
        requests.keep = True

    with _handlers({signal.SIGINT: stop, signal.SIGTERM: stop} | ({WARNING: keep} if WARNING else {})):
        yield requests


@contextmanager
def termination_as_interrupt() -> Iterator[None]:
    """Let SIGTERM do what Ctrl-C does, and SIGUSR1 nothing; the old meanings are back at the end."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    # SIGINT keeps its meaning, and gets it back where the block has changed it.
    handlers = {signal.SIGTERM: interrupt, signal.SIGINT: signal.getsignal(signal.SIGINT)}
    with _handlers(handlers | ({WARNING: signal.SIG_IGN} if WARNING else {})):
        yield


@contextmanager
def warnings_passed_to(receive: Callable[[int], object]) -> Iterator[None]:
    """Pass SIGUSR1 on, in the main thread, to what is called with its number."""
    with _handlers({WARNING: lambda number, frame: receive(number)} if WARNING else {}):
        yield


def ignore_signals() -> None:
    """`mlflow run` answers Ctrl-C by terminating us as well: a run's last words must not be cut off by that."""
    if _is_main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


@contextmanager
def end_with_parent(pid: int | None = None) -> Iterator[None]:
    """Send this process SIGTERM when the `mlflow run` behind it dies, so that no training goes on unseen.

    Args:
        pid: of the process that has started this one, where it is known: it may be gone already.
    """
    expected = _parents() if pid is None else (pid, 0)
    over = threading.Event()

    def watch() -> None:
        while not over.wait(PARENT_POLL_SECONDS):
            if _parents() != expected:
                os.kill(os.getpid(), signal.SIGTERM)
                return

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def is_running(pid: int) -> bool:
    """Whether there is a process of this number on this machine (a zombie is none). Windows cannot be asked: never."""
    if os.name == "nt":
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    with suppress(OSError):
        return _stat(pid)[1] != "Z"
    return True


def _parents() -> tuple[int, int]:
    """The parent process, and the parent of that if it is a shell, or 0."""
    parent = os.getppid()
    with suppress(OSError):
        name, _, above = _stat(parent)
        if name in SHELLS:
            return parent, int(above)
    return parent, 0


def _stat(pid: int) -> tuple[str, str, str]:
    """Name, state and parent of a process, from Linux's /proc; raises OSError elsewhere."""
    text = Path(f"/proc/{pid}/stat").read_text()
    name, _, rest = text.partition("(")[2].rpartition(")")
    state, above = rest.split()[:2]
    return name, state, above


@contextmanager
def _handlers(handlers: dict[int, Any]) -> Iterator[None]:
    """Set handlers, and the old ones again at the end. Only the main thread can; elsewhere nothing is done."""
    if not _is_main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
