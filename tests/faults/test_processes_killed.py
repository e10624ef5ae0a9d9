"""Two processes that train together, started by one command: what becomes of the others when one is gone."""

import contextlib
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
from processes import wait_for
from workplace import BIN, SMALL, equal

from hpt_mlflow.signals import is_running

LONG = 100_000


@pytest.fixture(autouse=True)
def none_left_behind(workplace):
    """A command that a test leaves is killed; its processes end themselves."""
    started, start = [], workplace.start

    def remembered(*words, **more):
        started.append(start(*words, **more))
        return started[-1]

    workplace.start = remembered
    yield
    for process in started:
        process.kill()
        process.wait()


def children(pid):
    """The processes that a process has started, by their rank in a training."""
    found = {}
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == pid:
                variables = (folder / "environ").read_bytes().split(b"\0")
                (rank,) = [int(one.removeprefix(b"RANK=")) for one in variables if one.startswith(b"RANK=")]
                found[rank] = int(folder.name)
    return found


def pair(process):
    return wait_for(lambda: (found := children(process.pid)).keys() == {0, 1} and found, process)


def trains(workplace, process, step=3):
    """Wait until a training has done some steps; gives its two processes."""
    wait_for(lambda: workplace.spooled_step() >= step, process)
    return pair(process)


def nothing_is_left(workplace, pids):
    wait_for(lambda: not any(map(is_running, pids)))
    wait_for(lambda: not list(workplace.spool.glob("*/*")))


def status(workplace):
    (run,) = workplace.runs()
    return workplace.client.get_run(run.info.run_id).info.status


def state_files(workplace):
    (run,) = workplace.runs()
    return {file.path for file in workplace.client.list_artifacts(run.info.run_id, "training_state")}


def errors(workplace):
    return [line for line in workplace.said().splitlines() if line.startswith("Error:")]


@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.soak), pytest.param(1, marks=pytest.mark.slow)])
def test_one_killed_ends_all_in_one_line(workplace, fault, victim):
    with fault("kill -9 of one of two processes"):
        process = workplace.pretrain(steps=LONG, nproc=2)
        pids = trains(workplace, process)
        os.kill(pids[victim], signal.SIGKILL)
        assert workplace.finish(process) == 1
        (error,) = errors(workplace)
        assert f"process {victim} of the training was ended by SIGKILL" in error
        assert "--restarts" in error
        # The guard of a first process that was killed ends its run.
        wait_for(lambda: status(workplace) in ("KILLED", "FAILED"))
        nothing_is_left(workplace, pids.values())


@pytest.mark.soak
def test_with_restarts_the_same_run_goes_on_whoever_was_killed(workplace, fault):
    steps, every = 200, 10
    process = workplace.pretrain(steps=steps, nproc=2, restarts=2, checkpoint_every=every)
    for number, victim in enumerate((1, 0), 1):
        with fault("kill -9 of one of two processes, with restarts") as count:
            begun = int(found[-1][0]) if (found := resumes(workplace)) else 0
            pids = trains(workplace, process, begun + every + 3)
            os.kill(pids[victim], signal.SIGKILL)
            step, again = wait_for(lambda n=number: len(found := resumes(workplace)) == n and found[-1], process)
            assert int(step) > begun
            # Another process is not waited for to end in order: what it was about to keep may be lost.
            assert int(again or 0) <= 2 * every + 1
            count.steps_again += int(again or 0)
            wait_for(lambda old=pids: not any(map(is_running, old.values())))
    assert workplace.finish(process) == 0
    assert not errors(workplace)
    (run,) = workplace.runs()
    assert run.info.status == "FINISHED"
    assert run.data.params["settings/nproc"] == "2"
    assert [step for step, _ in workplace.loss_curve(run)] == list(range(2, steps + 1, 2))
    assert workplace.weights(1)
    nothing_is_left(workplace, pids.values())


def resumes(workplace):
    """From which steps the training has gone on, and how many it did again."""
    return re.findall(r"at step (\d+) of \d+(?:; (\d+) steps)?", workplace.said())


@pytest.mark.soak
def test_signals_to_the_command_reach_all_and_the_same_command_goes_on(workplace, fault):
    options = {"steps": 150, "checkpoint_every": 0, "nproc": 2}
    assert workplace.finish(workplace.pretrain(**options, resume="never")) == 0
    (undisturbed,) = workplace.runs()

    with fault("SIGUSR1 and SIGTERM to the command"):
        process = workplace.pretrain(**options, resume="never")
        pids = trains(workplace, process)
        (disturbed,) = [run for run in workplace.runs() if run.info.run_id != undisturbed.info.run_id]
        client, run_id = workplace.client, disturbed.info.run_id
        assert not client.list_artifacts(run_id, "training_state")
        process.send_signal(signal.SIGUSR1)
        wait_for(lambda: client.list_artifacts(run_id, "training_state"), process)
        assert pair(process) == pids
        process.send_signal(signal.SIGTERM)
        assert workplace.finish(process) == 130
        assert client.get_run(run_id).info.status == "KILLED"
        wait_for(lambda: not any(map(is_running, pids.values())))

    with fault("SIGINT to the command"):
        process = workplace.pretrain(**options)
        ((step, again),) = wait_for(lambda: resumes(workplace), process)
        assert not again
        pids = trains(workplace, process, int(step) + 2)
        process.send_signal(signal.SIGINT)
        assert workplace.finish(process) == 130
        assert client.get_run(run_id).info.status == "KILLED"

    assert workplace.finish(workplace.pretrain(**options)) == 0
    assert client.get_run(run_id).info.status == "FINISHED"
    assert len(workplace.runs()) == 2
    assert workplace.loss_curve(disturbed) == workplace.loss_curve(undisturbed)
    assert equal(workplace.weights(1), workplace.weights(2))
    nothing_is_left(workplace, pids.values())


@pytest.mark.soak
def test_processes_do_not_outlive_a_command_that_was_killed(workplace, fault):
    with fault("kill -9 of the command of two processes"):
        process = workplace.pretrain(steps=LONG, nproc=2, checkpoint_every=0)
        pids = trains(workplace, process)
        process.kill()
        process.wait()
        nothing_is_left(workplace, pids.values())
        assert status(workplace) == "KILLED"
        assert "Traceback" not in workplace.said()
        assert state_files(workplace)


def torchrun(workplace, *words, **options):
    """Start torchrun of one's own; its words go to a pipe."""
    pretrain = [word for name, value in (SMALL | options).items() for word in (f"--{name.replace('_', '-')}", value)]
    return subprocess.Popen(
        [BIN / "torchrun", *words, "--no-python", BIN / "hpt", "pretrain", *map(str, pretrain)],
        cwd=workplace.folder,
        env=workplace.environment(TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.soak
def test_torchrun_of_ones_own_is_as_good(workplace, unused_port):
    alone = torchrun(workplace, "--standalone", "--nproc-per-node", "2", steps=4)
    said, complaints = alone.communicate(timeout=180)
    assert alone.returncode == 0, complaints
    assert said.count("pretrain: run ") == 1
    (run,) = workplace.runs()
    assert run.info.status == "FINISHED"
    assert run.data.params["settings/nproc"] == "2"

    # Two agents stand for two machines.
    words = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "two"]
    words += ["--rdzv-endpoint", f"localhost:{unused_port}"]
    agents = [torchrun(workplace, *words, steps=4, resume="never") for _ in range(2)]
    answers = [agent.communicate(timeout=180) for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], answers
    assert "".join(said for said, _ in answers).count("pretrain: run ") == 1
    assert "Traceback" not in "".join(complaints for _, complaints in answers)
    other = next(one for one in workplace.runs() if one.info.run_id != run.info.run_id)
    assert other.data.params["settings/nproc"] == "2"
    assert workplace.loss_curve(other) == workplace.loss_curve(run)
    assert equal(workplace.weights(1), workplace.weights(2))
