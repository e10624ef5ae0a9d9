"""On a machine with other work."""

import os
import subprocess
import sys
import threading
import time

import pytest

from hpt_mlflow.cores import CROWDED, LEAST_WANTED, THREADS, CoreShare, waiting_variables

linux = pytest.mark.skipif(not THREADS.is_dir(), reason="only Linux says for how long threads wait for a core")
PASSIVE = {"OMP_WAIT_POLICY": "passive"}

# Starts the command on a machine with a load, which torch must not have been imported for.
START = """
import os, sys
os.getloadavg = lambda: (float(sys.argv[1]),) * 3
from hpt_mlflow.cli import hpt
assert "torch" not in sys.modules
hpt.callback()
assert "torch" not in sys.modules
print(os.environ.get("OMP_WAIT_POLICY"))
"""
SPIN = """
import os, sys
os.sched_setaffinity(0, {int(sys.argv[1])})
print("ready", flush=True)
while True:
    pass
"""


def test_threads_sleep_only_where_there_is_more_work_than_cores():
    assert waiting_variables({}, load=8, cores=2) == PASSIVE
    assert waiting_variables({}, load=2 * CROWDED, cores=2) == {}
    assert waiting_variables({}, load=8, cores=16) == {}


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"])
def test_what_the_user_has_said_about_waiting_stays(name):
    assert waiting_variables({name: "0"}, load=8, cores=2) == {}


def policy_of_the_command(load, **variables):
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"} | variables
    command = [sys.executable, "-c", START, str(load)]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.strip()


def test_the_command_says_so_before_torch_is_imported():
    assert policy_of_the_command(1e6) == "passive"
    assert policy_of_the_command(0) == "None"
    assert policy_of_the_command(1e6, OMP_WAIT_POLICY="active") == "active"


def in_a_thread(function):
    """Run it in a thread, whose core may be chosen without moving the others."""
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


def work_on(core, share, complaints):
    os.sched_setaffinity(0, {core})
    end = time.thread_time() + share
    measured = CoreShare()
    while time.thread_time() < end:
        pass
    complaints.append(measured.complaint())


@linux
def test_a_process_that_gets_few_of_its_cores_says_so(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    core, complaints = min(os.sched_getaffinity(0)), []
    others = [
        subprocess.Popen([sys.executable, "-c", SPIN, str(core)], stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    try:
        for other in others:
            assert other.stdout.readline() == "ready\n"
        in_a_thread(lambda: work_on(core, 0.3, complaints))
    finally:
        for other in others:
            other.kill()
            other.communicate()
    assert complaints[0].startswith("the machine is busy: this process gets 0.")
    assert complaints[0].endswith("OMP_WAIT_POLICY=passive or OMP_NUM_THREADS=1 in the environment")


@linux
def test_a_process_that_waits_for_something_else_does_not_complain():
    measured = CoreShare()
    threading.Event().wait(4 * LEAST_WANTED / 10)
    assert measured.complaint() == ""
