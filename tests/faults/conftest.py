"""What is broken here is broken for real. A table at the end says what was tried, what was survived, what was lost."""

import subprocess
from contextlib import contextmanager
from dataclasses import dataclass

import mlflow
import pytest
import requests
from processes import kill_group, wait_for
from workplace import Workplace


@dataclass
class Count:
    tried: int = 0
    survived: int = 0
    lost: int = 0
    steps_again: int = 0


COUNTS: dict[str, Count] = {}


@pytest.fixture
def fault():
    """Counts a fault; the block fails, or says what was lost."""

    @contextmanager
    def counting(name):
        count = COUNTS.setdefault(name, Count())
        count.tried += 1
        yield count
        count.survived += 1

    return counting


def pytest_terminal_summary(terminalreporter):
    if not COUNTS:
        return
    terminalreporter.section("faults")
    width = max(map(len, COUNTS))
    terminalreporter.write_line(f"{'fault':{width}}  tried  survived  lost  steps done again")
    for name, count in COUNTS.items():
        line = f"{name:{width}}  {count.tried:5}  {count.survived:8}  {count.lost:4}  {count.steps_again:16}"
        terminalreporter.write_line(line)


@pytest.fixture
def workplace(tmp_path):
    """A folder with a sqlite store of its own."""
    yield Workplace(tmp_path, f"sqlite:///{tmp_path}/mlflow.db")
    mlflow.set_tracking_uri(None)


@pytest.fixture
def small_disk(tmp_path):
    """A filesystem of 64 MiB."""
    folder = tmp_path / "small-disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder], check=False)
    if mounted.returncode:
        pytest.skip("mounting a small filesystem takes root")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
def server(tmp_path, unused_port):
    """A function that starts a real `mlflow server` on one and the same port and store; all are killed at the end."""
    started = []
    uri = f"http://127.0.0.1:{unused_port}"
    place = Workplace(tmp_path, f"sqlite:///{tmp_path}/mlflow.db")

    def start(*options):
        words = ["mlflow", "server", "--host", "127.0.0.1", "--port", unused_port, "--workers", "1"]
        words += ["--backend-store-uri", place.tracking_uri, "--artifacts-destination", tmp_path / "artifacts"]
        process = place.start(*words, *options)
        started.append(process)
        wait_for(lambda: answers(uri), process)
        return process

    yield start, Workplace(tmp_path, uri)
    for process in started:
        kill_group(process, 9)


def answers(uri):
    try:
        return requests.get(f"{uri}/health", timeout=1).ok
    except requests.RequestException:
        return False
