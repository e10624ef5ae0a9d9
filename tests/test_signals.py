import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from processes import wait_for

from hpt_mlflow import signals
from hpt_mlflow.signals import (
    end_with_parent,
    ignore_signals,
    is_running,
    signals_as_requests,
    termination_as_interrupt,
)

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
SECONDS = 20
needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="shells are known by Linux's /proc")

# Says that it is there, then waits for SIGTERM, and says that it came.
CHILD = """
import signal, sys, time
from pathlib import Path
from hpt_mlflow import signals

folder = Path(sys.argv[1])
signals.PARENT_POLL_SECONDS = 0.05
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit((folder / "terminated").touch()))
with signals.end_with_parent():
    (folder / "ready").touch()
    time.sleep(60)
"""
PARENT = "import subprocess, sys; subprocess.run(sys.argv[1:])"
BETWEEN = "import os, sys; os.fork() or os.execv(sys.argv[1], sys.argv[1:]); os.wait()"
UNTIL_ORPHANED = """
    while not (folder / "orphaned").exists():
        time.sleep(0.01)
    time.sleep(10 * signals.PARENT_POLL_SECONDS)
    (folder / "untouched").touch()
"""


@pytest.fixture(autouse=True)
def handlers_stay_as_they_were():
    found = handlers()
    # A signal that gets through must not end the tests.
    for number in NUMBERS:
        signal.signal(number, lambda number, frame: None)
    before = handlers()
    yield
    now = handlers()
    for number, handler in found.items():
        signal.signal(number, handler)
    assert now == before


def handlers():
    return {number: signal.getsignal(number) for number in NUMBERS}


def interrupts(number):
    """Send this process a signal; whether it interrupts."""
    try:
        os.kill(os.getpid(), number)
    except KeyboardInterrupt:
        return True
    return False


def in_a_thread(function):
    answers = []
    thread = threading.Thread(target=lambda: answers.append(function()))
    thread.start()
    thread.join(SECONDS)
    return answers[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_becomes_a_request_to_stop(number):
    with signals_as_requests() as requests:
        assert (requests.stop, requests.keep) == (False, False)
        assert not interrupts(number)
        assert (requests.stop, requests.keep) == (True, False)


def test_the_warning_of_a_scheduler_asks_to_keep_the_state_and_not_to_stop():
    with signals_as_requests() as requests:
        assert not interrupts(signal.SIGUSR1)
        assert (requests.stop, requests.keep) == (False, True)


def test_a_second_ctrl_c_interrupts_at_once_and_no_other_signal_does():
    with signals_as_requests() as requests:
        assert not interrupts(signal.SIGINT)
        assert not interrupts(signal.SIGTERM)
        assert not interrupts(signal.SIGUSR1)
        assert (requests.stop, requests.keep) == (True, True)
        assert interrupts(signal.SIGINT)


@pytest.mark.parametrize("context", [signals_as_requests, termination_as_interrupt])
def test_old_handlers_are_back_after_an_exception(context):
    before = handlers()

    def block():
        with context():
            assert handlers() != before
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        block()
    assert handlers() == before


def test_termination_interrupts():
    with termination_as_interrupt():
        assert interrupts(signal.SIGTERM)


def test_a_warning_does_nothing_while_termination_interrupts():
    with termination_as_interrupt():
        assert handlers()[signal.SIGUSR1] == signal.SIG_IGN
        assert not interrupts(signal.SIGUSR1)


def test_requests_inside_give_termination_its_meaning_back():
    with termination_as_interrupt():
        with signals_as_requests() as requests:
            assert not interrupts(signal.SIGTERM)
        assert requests.stop
        assert interrupts(signal.SIGTERM)


def test_ignored_signals_do_nothing_until_the_block_ends():
    before = handlers()
    with termination_as_interrupt():
        ignore_signals()
        assert handlers()[signal.SIGINT] == handlers()[signal.SIGTERM] == signal.SIG_IGN
        assert not interrupts(signal.SIGINT)
        assert not interrupts(signal.SIGTERM)
    assert handlers() == before


@pytest.mark.parametrize("context", [signals_as_requests, termination_as_interrupt])
def test_nothing_happens_outside_the_main_thread(context):
    before = handlers()

    def inside():
        ignore_signals()
        with context():
            return handlers()

    assert in_a_thread(inside) == before


def start_parent(tmp_path, *command):
    parent = subprocess.Popen([sys.executable, "-c", PARENT, *command])
    wait_for((tmp_path / "ready").exists)
    return parent


def child(tmp_path, code=CHILD):
    return sys.executable, "-c", code, str(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_child_is_terminated_when_its_parent_dies(tmp_path, number):
    parent = start_parent(tmp_path, *child(tmp_path))
    parent.send_signal(number)
    parent.wait(SECONDS)
    wait_for((tmp_path / "terminated").exists)


@needs_proc
def test_a_child_is_terminated_when_the_parent_of_its_shell_dies(tmp_path):
    # With something to do after it, bash stays in between.
    parent = start_parent(tmp_path, "bash", "-c", '"$@"; true', "bash", *child(tmp_path))
    parent.kill()
    parent.wait(SECONDS)
    wait_for((tmp_path / "terminated").exists)


@needs_proc
def test_a_child_is_terminated_when_its_shell_dies(tmp_path):
    parent = start_parent(tmp_path, "bash", "-c", f'echo $$ > {tmp_path}/shell; "$@"; true', "bash", *child(tmp_path))
    os.kill(int((tmp_path / "shell").read_text()), signal.SIGKILL)
    parent.wait(SECONDS)
    wait_for((tmp_path / "terminated").exists)


@needs_proc
def test_a_parent_that_is_no_shell_may_lose_its_own_parent(tmp_path):
    waiting = CHILD.replace("time.sleep(60)", UNTIL_ORPHANED)
    with subprocess.Popen(
        [sys.executable, "-c", BETWEEN, sys.executable, "-c", PARENT, *child(tmp_path, waiting)],
    ) as above:
        wait_for((tmp_path / "ready").exists)
        above.kill()
        above.wait(SECONDS)
        (tmp_path / "orphaned").touch()
        wait_for((tmp_path / "untouched").exists)
    assert not (tmp_path / "terminated").exists()


def watchers():
    return [thread for thread in threading.enumerate() if thread.name == "end-with-parent"]


def test_a_parent_that_lives_is_left_alone_and_not_watched_after_the_block(monkeypatch):
    monkeypatch.setattr(signals, "PARENT_POLL_SECONDS", 0.01)
    with end_with_parent():
        (thread,) = watchers()
        time.sleep(0.1)
        assert thread.is_alive()
    thread.join(SECONDS)
    assert not thread.is_alive()


@needs_proc
def test_a_process_is_running_until_it_is_a_zombie_or_gone():
    assert is_running(os.getpid())
    assert is_running(1)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert is_running(process.pid)
        process.kill()
        wait_for(lambda: Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z")
        assert not is_running(process.pid)
    assert not is_running(process.pid)
