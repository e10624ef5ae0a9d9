"""A tracking server that is killed, hangs, refuses and comes back: training goes on, nothing is lost or doubled."""

import os
import signal

import pytest
from processes import wait_for

STEPS = 400


def curve_is_whole(workplace, run):
    steps = [step for step, _ in workplace.loss_curve(run)]
    return steps == list(range(4, STEPS + 1, 4))


def lost(workplace, run):
    return len(set(range(4, STEPS + 1, 4)) - {step for step, _ in workplace.loss_curve(run)})


def advance(workplace, process, steps):
    """Wait until the training has gone on by so many steps while the server is away."""
    begun = workplace.spooled_step()
    wait_for(lambda: workplace.spooled_step() >= begun + steps, process)


@pytest.mark.slow
def test_training_goes_on_while_the_server_hangs_and_while_it_is_gone(server, fault):
    start_server, workplace = server
    process_of_server = start_server()
    training = workplace.pretrain(steps=STEPS, checkpoint_every=50, milestones="20%")
    wait_for(lambda: workplace.spooled_step() >= 8, training)
    with fault("server hangs, then goes on") as hanging:
        os.killpg(process_of_server.pid, signal.SIGSTOP)
        advance(workplace, training, 100)
        os.killpg(process_of_server.pid, signal.SIGCONT)
        wait_for(lambda: workplace.runs()[0].data.metrics.get("train/loss"), training)
    with fault("server killed, then started again") as killed:
        os.killpg(process_of_server.pid, signal.SIGKILL)
        advance(workplace, training, 60)
        start_server()
    assert workplace.finish(training) == 0
    assert workplace.said().count("does not answer") <= 2
    (run,) = workplace.runs()
    hanging.lost = killed.lost = lost(workplace, run)
    assert curve_is_whole(workplace, run)
    assert run.info.status == "FINISHED"
    assert {model.step for model in run.outputs.model_outputs} == {80, 400}
    assert [version.version for version in workplace.client.search_model_versions("name='hpt'")] == ["1"]
    assert not list(workplace.spool.glob("*/*.json"))


@pytest.mark.soak
def test_what_a_server_never_took_is_kept_and_sent_by_hpt_sync(server, fault):
    start_server, workplace = server
    process_of_server = start_server()
    with fault("server gone at the end, then hpt sync") as count:
        training = workplace.pretrain(steps=STEPS, checkpoint_every=50, milestones="20%")
        wait_for(lambda: workplace.spooled_step() >= 8, training)
        os.killpg(process_of_server.pid, signal.SIGKILL)
        assert workplace.finish(training) == 1
        error = [line for line in workplace.said().splitlines() if line.startswith("Error: ")][-1]
        assert "hpt sync" in error
        assert str(workplace.spool) in error
        still_away = workplace.hpt("sync", "--patience", "1", MLFLOW_HTTP_REQUEST_MAX_RETRIES="0")
        assert still_away.returncode == 1
        start_server()
        sent = workplace.hpt("sync")
        assert sent.returncode == 0, sent.stderr
        (run,) = workplace.runs()
        count.lost = lost(workplace, run)
    assert curve_is_whole(workplace, run)
    assert run.info.status == "FINISHED"
    assert run.data.tags["hpt.model"] == "models:/hpt/1"
    assert "models:/hpt/1" in run.data.tags["mlflow.note.content"]
    assert not list(workplace.spool.glob("*/*"))
    assert workplace.hpt("sync").stdout.startswith("Nothing waits")
