"""Nothing that a test starts outlives it."""

import os
import subprocess
import sys

import pytest
from processes import MARK, marked, processes_end_with, wait_for

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="processes are not shown here")

# A process that leaves its group and starts one more.
DETACHED = """
import subprocess, sys
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"], start_new_session=True)
print("ready", flush=True)
sys.stdin.read()
"""


def fail_after_starting(monkeypatch, marks):
    with processes_end_with("block", monkeypatch):
        marks.append(os.environ[MARK])
        pipe = subprocess.PIPE
        process = subprocess.Popen([sys.executable, "-c", DETACHED], stdin=pipe, stdout=pipe, start_new_session=True)
        assert process.stdout.readline() == b"ready\n"
        wait_for(lambda: len(marked(marks[0])) == 2)
        raise ZeroDivisionError


def test_what_a_block_has_started_is_gone_also_where_it_fails_and_where_it_was_detached(monkeypatch):
    marks = []
    with pytest.raises(ZeroDivisionError):
        fail_after_starting(monkeypatch, marks)
    wait_for(lambda: not marked(marks[0]))


def test_waiting_ends_with_the_process_that_is_waited_for():
    with subprocess.Popen([sys.executable, "-c", ""]) as process, pytest.raises(AssertionError, match="has ended"):
        wait_for(lambda: False, process)


def test_waiting_ends_in_vain():
    with pytest.raises(AssertionError, match="in vain"):
        wait_for(lambda: False, seconds=0)
    assert wait_for(lambda: "answer", seconds=0) == "answer"
