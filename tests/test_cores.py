"""On a machine with other work."""

import os
import subprocess
import sys

import pytest

from hpt_mlflow import cores
from hpt_mlflow.cores import CROWDED, available_cores, waiting_variables

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


@pytest.mark.parametrize(
    ("quota", "expected"), [("max 100000", 6), ("200000 100000", 2), ("50000 100000", 1), ("900000 100000", 6), ("", 6)]
)
def test_a_container_may_use_fewer_cores_than_the_machine_has(monkeypatch, tmp_path, quota, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(6)), raising=False)
    monkeypatch.setattr(cores, "QUOTA", tmp_path / "cpu.max")
    assert available_cores() == 6
    cores.QUOTA.write_text(quota)
    assert available_cores() == expected


@pytest.mark.parametrize(("mine", "before", "after"), [(2, None, "2"), (2, "1", "1"), (8, None, None)])
def test_threads_keep_to_the_quota_unless_the_user_has_said_how_many(monkeypatch, mine, before, after):
    monkeypatch.setattr(cores, "available_cores", lambda: mine)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    # What is set within is taken back at the end.
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    os.environ.pop("OMP_NUM_THREADS")
    if before:
        os.environ["OMP_NUM_THREADS"] = before
    cores.fit_threads()
    assert os.environ.get("OMP_NUM_THREADS") == after
