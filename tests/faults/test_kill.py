"""Killing a training at any moment costs at most the steps since the last training state."""

import json
import os
import random
import re
import signal
from pathlib import Path

import pytest
from processes import wait_for
from workplace import equal

ROOT = Path(__file__).resolve().parents[2]
EVERY = 10


def go_on(workplace, process):
    """Wait until a training has taken up the work; gives its step, and how many it does again."""
    said = wait_for(lambda: re.search(r"at step (\d+) of \d+(?:; (\d+) steps)?", workplace.said()), process)
    return int(said[1]), int(said[2] or 0)


@pytest.mark.parametrize("kills", [pytest.param(2, marks=pytest.mark.slow), pytest.param(20, marks=pytest.mark.soak)])
def test_a_training_killed_again_and_again_ends_in_the_same_bits(workplace, fault, kills):
    steps = kills * 15 + EVERY
    assert workplace.finish(workplace.pretrain(steps=steps, checkpoint_every=EVERY)) == 0
    (undisturbed,) = workplace.runs()

    choice = random.Random(kills)
    for number in range(kills):
        with fault("kill -9 at a random step") as count:
            process = workplace.pretrain(steps=steps, checkpoint_every=EVERY, resume="auto" if number else "never")
            begun, again = go_on(workplace, process) if number else (0, 0)
            target = begun + choice.randint(1, 15)
            wait_for(lambda step=target: workplace.spooled_step() >= step, process)
            process.kill()
            process.wait()
            count.steps_again += again
            assert again <= EVERY + 1
    process = workplace.pretrain(steps=steps, checkpoint_every=EVERY)
    assert workplace.finish(process) == 0

    disturbed, _ = sorted(workplace.runs(), key=lambda run: run.info.run_id == undisturbed.info.run_id)
    assert disturbed.info.status == "FINISHED"
    count.lost += len(set(workplace.loss_curve(undisturbed)) - set(workplace.loss_curve(disturbed)))
    assert workplace.loss_curve(disturbed) == workplace.loss_curve(undisturbed)
    assert equal(workplace.weights(1), workplace.weights(2))
    assert len(workplace.client.get_run(disturbed.info.run_id).outputs.model_outputs) == 2
    assert not list(workplace.spool.glob("*/*.json"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_training_does_not_outlive_its_mlflow_run(workplace, fault, number):
    options = {
        "data": "builtin:digits",
        "arch": "shufflenet_v2_x0_5",
        "image_size": 16,
        "batch_size": 32,
        "compile": "off",
    }
    words = [word for option in ({"steps": 100_000} | options).items() for word in ("-P", "{}={}".format(*option))]
    with fault(f"{number.name} to mlflow run"):
        parent = workplace.start("mlflow", "run", ROOT, "-e", "pretrain", "--env-manager", "local", *words)
        wait_for(lambda: workplace.spooled_step() > 2, parent)
        (run,) = workplace.runs()
        (owner,) = workplace.spool.glob("*/run.json")
        trainer = json.loads(owner.read_text())["pid"]
        os.kill(parent.pid, number)
        parent.wait()
        wait_for(lambda: not os.path.exists(f"/proc/{trainer}"))
        wait_for(lambda: workplace.client.get_run(run.info.run_id).info.status == "KILLED")
        wait_for(lambda: not list(workplace.spool.glob("*/*")))
        files = {file.path for file in workplace.client.list_artifacts(run.info.run_id)}
        assert "training_state" in files
