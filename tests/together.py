"""Functions that run in several processes at once, joined as torchrun joins them."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
from torch.distributed import TCPStore

from hpt_mlflow.group import Group, training_group

# A server that has imported once what the functions need, and forks in milliseconds. Those of Numba are what it imports
# with the first function that it loads.
SPAWN = multiprocessing.get_context("forkserver")
SPAWN.set_forkserver_preload(
    [
        "pytest",
        "hpt_mlflow.training.loop",
        "hpt_mlflow.stages.processes.launch",
        "numba.np.arraymath",
        "numba.typed.typeddict",
        "numba.typed.typedlist",
    ]
)
KILLED = "killed"


class Line:
    """What a function in a process has to talk with the test."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def about_to_wait(self) -> None:
        """Let the test kill all who wait to be killed."""
        self._connection.send_bytes(pickle.dumps(("waits", None)))

    def wait_to_be_killed(self) -> None:
        """Wait for the SIGKILL that comes when another process is `about_to_wait`."""
        self._connection.send_bytes(pickle.dumps(("ready", None)))
        self._connection.recv()


def in_processes(
    function: Callable[..., Any], *values: Any, size: int = 2, seconds: float = 60.0, by_torchrun: bool = True
) -> list[Any]:
    """What `function(group, line, *values)` gives in each process; `KILLED` of one that was.

    Those that torchrun did not start have the variables that Kubernetes' operators set, and a port of the first one's.

    Fails where one raises, or where they are not done in time: a hang.
    """
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    port = store.port
    if not by_torchrun:
        del store
    lines, processes = [], []
    for rank in range(size):
        ours, theirs = SPAWN.Pipe()
        process = SPAWN.Process(
            target=_be_one, args=(theirs, port, rank, size, by_torchrun, function, values), daemon=True
        )
        process.start()
        theirs.close()
        lines.append(ours)
        processes.append(process)
    try:
        return _answers(lines, processes, time.monotonic() + seconds)
    finally:
        for process in processes:
            process.kill()
            process.join()


def _answers(lines: Sequence[Connection], processes: Sequence[Any], deadline: float) -> list[Any]:
    answers: dict[int, Any] = {}
    ready, waiting = set(), False
    while len(answers) < len(lines):
        open_lines = [line for rank, line in enumerate(lines) if rank not in answers]
        found = wait(open_lines, max(0.0, deadline - time.monotonic()))
        assert found, f"processes {sorted(set(range(len(lines))) - answers.keys())} hang"
        for line in found:
            rank = lines.index(line)
            try:
                kind, value = pickle.loads(line.recv_bytes())  # noqa: S301 - our own
            except EOFError:
                kind, value = "answer", KILLED
            assert kind != "error", value
            if kind == "answer":
                answers[rank] = value
            elif kind == "ready":
                ready.add(rank)
            else:
                waiting = True
        if waiting:
            for rank in ready:
                processes[rank].kill()
    return [answers[rank] for rank in range(len(lines))]


def _be_one(
    connection: Connection, port: int, rank: int, size: int, by_torchrun: bool, function: Any, values: Sequence[Any]
) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
    }
    if by_torchrun:
        os.environ |= {
            "TORCHELASTIC_RUN_ID": "test",
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCHELASTIC_RESTART_COUNT": "0",
            "LOCAL_RANK": str(rank),
        }
    try:
        with training_group(torch.device("cpu")) as group:
            assert group == Group(rank, size)
            answer = function(group, Line(connection), *values)
        connection.send_bytes(pickle.dumps(("answer", answer)))
    except BaseException:
        connection.send_bytes(pickle.dumps(("error", traceback.format_exc())))
