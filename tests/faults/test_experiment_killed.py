"""An experiment whose command goes away: no run says that it is at work, and the same command goes on."""

import csv
import os
import signal

import mlflow
import pytest
from processes import wait_for
from workplace import Workplace

STUDY = {
    "study": "separability",
    "base-model": "models:/hpt/1",
    "target": "builtin:digits",
    "seeds": 1,
    "steps": 4,
    "milestones": "50%,100%",
    "batch-size": 32,
    "precision": "float32",
    "compile": "off",
    "dry-run": "false",
}
METHODS = {"Base as it is", "Base", "Target", "HPT", "HPT-BN", "untrained"}
SECONDS_TO_END = 60


@pytest.fixture
def place(tmp_path):
    """A store with a model in it."""
    place = Workplace(tmp_path, f"sqlite:///{tmp_path}/mlflow.db")
    assert place.finish(place.pretrain(steps=1, milestones="100%")) == 0
    return place


def start(place):
    return place.start("hpt", "study", *(word for name, value in STUDY.items() for word in (f"--{name}", value)))


def at_work(place):
    return [run.info.run_name for run in place.client.search_runs(["0"]) if run.info.status == "RUNNING"]


def finished(place, stage):
    found = place.client.search_runs(["0"], f"tags.`hpt.stage` = '{stage}' and attributes.status = 'FINISHED'")
    return {run.info.run_id for run in found}


@pytest.mark.soak
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_an_experiment_goes_on_where_it_was(place, number):
    process = start(place)
    # The fourth job, Target's training, is at work.
    wait_for(lambda: "3 of 9: " in place.said() and len(at_work(place)) == 2, process, seconds=300)
    before = finished(place, "adapt"), finished(place, "evaluate")
    os.kill(process.pid, number)
    assert process.wait(SECONDS_TO_END) == (-9 if number == signal.SIGKILL else 130)
    wait_for(lambda: not at_work(place), seconds=SECONDS_TO_END)
    (study,) = place.client.search_runs(["0"], "tags.`hpt.stage` = 'study'")
    assert study.info.status == "KILLED"

    assert place.finish(start(place), seconds=300) == 0
    (study,) = place.client.search_runs(["0"], "tags.`hpt.stage` = 'study'")
    assert study.info.status == "FINISHED"
    artifacts = {artifact.path for artifact in place.client.list_artifacts(study.info.run_id)}
    assert {"study.html", "study.csv", "study.png", "study.svg"} <= artifacts
    # What it had done itself before is its own.
    assert "(reused: run " not in place.said()
    assert before[0] < finished(place, "adapt")
    assert before[1] < finished(place, "evaluate")
    # Base, HPT and HPT-BN; Target starts from random weights, as did the model in the store.
    assert [len(finished(place, stage)) for stage in ("adapt", "pretrain", "evaluate")] == [3, 2, 5]
    answer = mlflow.artifacts.load_text(f"{study.info.artifact_uri}/study.csv")
    assert {row["method"] for row in csv.DictReader(answer.splitlines())} == METHODS
    assert (study.data.metrics["study/stages"], study.data.metrics["study/reused"]) == (9, 0)
