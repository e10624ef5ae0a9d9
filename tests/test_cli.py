import dataclasses
import os
import signal
import socket
import subprocess
import sys

import pytest
from click.testing import CliRunner

from hpt_mlflow.cli import hpt
from hpt_mlflow.stages import STAGES


def run(*arguments):
    return CliRunner().invoke(hpt, [str(argument) for argument in arguments])


def assert_one_line_error(result, *words, exit_code=1):
    assert result.exit_code == exit_code, result.output
    lines = [line for line in result.output.splitlines() if line.startswith("Error")]
    assert len(lines) == 1
    assert "Traceback" not in result.output
    for word in words:
        assert str(word) in lines[0]


def test_help_lists_the_stages():
    result = run("--help")
    assert result.exit_code == 0
    for stage in STAGES:
        assert stage in result.output


@pytest.mark.parametrize("stage", STAGES)
def test_help_says_meaning_and_default_of_every_option(stage):
    text = " ".join(run(stage, "--help").output.split())
    for field in dataclasses.fields(STAGES[stage].settings):
        assert f"--{field.name.replace('_', '-')} " in text
    assert text.count("efault: ") == len(dataclasses.fields(STAGES[stage].settings))


DIGITS = ("pretrain", "--data", "builtin:digits")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("pretrain", "--temperature", "0"), ("temperature", "0.0")),
        (("pretrain", "--augment", "crop,rotate"), ("'rotate'", "color", "flip")),
        (("pretrain", "--arch", "resnet81"), ("'resnet81'", "resnet18")),
        (("pretrain", "--data", "/nowhere"), ("/nowhere",)),
        (("pretrain", "--data", "empty"), ("no images", "empty")),
        ((*DIGITS, "--device", "cuda:97"), ("cuda:97",)),
        ((*DIGITS, "--steps", "10", "--milestones", "5,20"), ("milestones", 20, 10)),
        ((*DIGITS, "--batch-size", "5000"), ("batch_size", 5000, 1438)),
        ((*DIGITS, "--alias", "v3"), ("alias", "'v3'")),
        ((*DIGITS, "--resume", "nowhere"), ("resume", "'nowhere'")),
        (("adapt", "--parent", "models:/hpt/latest"), ("parent", "'hpt'", "pretrain first")),
        (("evaluate", "--model", "s3://bucket/model"), ("model", "s3://bucket/model")),
        (("pretrain", "--data", ""), ("data: it is empty", "leave it out")),
        (("adapt", "--parent", ""), ("parent: it is empty", "leave it out")),
        (("evaluate", "--model", ""), ("model: it is empty", "leave it out")),
        (("main", "--target", ""), ("target: it is empty", "leave it out")),
        (("study", "--base", ""), ("base: it is empty", "leave it out")),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_run(store, tmp_path, monkeypatch, arguments, words):
    import mlflow

    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert_one_line_error(run(*arguments), *words)
    assert mlflow.search_runs(search_all_experiments=True, output_format="list") == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--steps", "many"), ("'many'", "whole number")),
        (("--epochs", "3"), ("--epochs",)),
        (("--seed", ""), ("''",)),
        (("--nproc", ""), ("''",)),
        (("--strict", ""), ("''",)),
        # Only a switch may come without its value.
        (("--steps", "--seed", "3"), ("--steps",)),
        (("--resume",), ("--resume",)),
    ],
)
def test_words_that_are_no_options_are_refused(arguments, words):
    assert_one_line_error(run("pretrain", *arguments), *words, exit_code=2)


def test_a_tracking_server_that_is_not_there(monkeypatch, unused_port):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{unused_port}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    result = run("pretrain", "--data", "builtin:digits", "--image-size", "16")
    assert_one_line_error(result, "tracking server", unused_port, "nobody answers")


def killed_run():
    from hpt_mlflow.tracking.identity import Identity
    from hpt_mlflow.tracking.runs.stage_run import stage_run

    def stage():
        identity = Identity({"stage": "pretrain"}, "hpt pretrain --data 'my cats'")
        with stage_run("pretrain cats", identity) as run:
            run.metrics({"train/loss": 2.0}, 1)
            ids.append(run.run_id)
            raise KeyboardInterrupt

    ids = []
    with pytest.raises(KeyboardInterrupt):
        stage()
    return ids[0]


def test_runs_says_when_every_run_is_finished(store):
    result = run("runs")
    assert (result.exit_code, result.output) == (0, "Every run is finished.\n")


def test_runs_lists_a_killed_run_with_the_command_that_goes_on(store):
    run_id = killed_run()
    result = run("runs")
    assert result.exit_code == 0
    header, _, row, _, _, last = result.output.splitlines()
    assert header.split() == ["run", "name", "state", "training", "state", "last", "seen"]
    assert row.startswith(f"{run_id}  pretrain cats  interrupted  none ")
    assert last == f"  {run_id}  hpt pretrain --data 'my cats'"


def test_runs_gives_no_command_for_a_run_at_work(store):
    from hpt_mlflow.tracking.identity import Identity
    from hpt_mlflow.tracking.runs.stage_run import stage_run

    with stage_run("pretrain cats", Identity({"stage": "pretrain"}, "hpt pretrain --seed 77")) as stage:
        result = run("runs")
    assert stage.run_id in result.output
    assert "running on" in result.output
    assert "--seed 77" not in result.output


def test_sync_says_when_nothing_waits(store):
    result = run("sync")
    assert result.exit_code == 0
    assert result.output == f"Nothing waits in {os.environ['HPT_SPOOL']}.\n"


def keep_tags(run_id, tracking_uri):
    """What a process that is gone could not tell."""
    from hpt_mlflow.tracking.delivery.spool import Owner, Spool, spool_folder

    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    owner = Owner(run_id, "0", "pretrain cats", tracking_uri, tracking_uri, process.pid, socket.gethostname())
    spool = Spool.open(spool_folder(run_id), owner)
    spool.add("tags", {"hpt.chain": "cats"})
    spool.close()
    return spool.folder


@pytest.fixture
def servers_are_forgotten(monkeypatch):
    """`hpt sync` speaks to the servers of the spools."""
    import mlflow

    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "")
    yield
    mlflow.set_registry_uri(None)
    mlflow.set_tracking_uri(None)


def test_sync_delivers_what_waits(store, servers_are_forgotten):
    import mlflow

    run_id = killed_run()
    folder = keep_tags(run_id, store)
    result = run("sync")
    assert (result.exit_code, result.output) == (0, f"pretrain cats ({run_id}): 2 entries delivered\n")
    assert mlflow.get_run(run_id).data.tags["hpt.chain"] == "cats"
    assert not folder.exists()


def test_sync_fails_where_something_is_left_and_keeps_it(unused_port, monkeypatch, servers_are_forgotten):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    folder = keep_tags("0" * 32, f"http://127.0.0.1:{unused_port}")
    result = run("sync", "--patience", "0.5")
    assert_one_line_error(result, "some entries could not be delivered", "hpt sync again")
    assert f"are left in {folder}" in result.output
    assert "nobody answers" in result.output
    assert len(list(folder.glob("[0-9]*.json"))) == 2


def test_an_interrupted_stage_says_so_and_ends_as_shells_expect(store, monkeypatch):
    import mlflow

    from hpt_mlflow.stages.progress import ProgressDisplay

    monkeypatch.setattr(ProgressDisplay, "advance", lambda self, step, metrics: os.kill(os.getpid(), signal.SIGINT))
    settings = {"data": "builtin:digits", "arch": "shufflenet_v2_x0_5", "image-size": 16, "batch-size": 32, "steps": 9}
    result = run("pretrain", *(word for name, value in settings.items() for word in (f"--{name}", value)))
    assert result.exit_code == 130
    assert "Traceback" not in result.output
    assert result.output.splitlines()[-1] == (
        "Interrupted: a run that was started is KILLED and keeps its training state; repeat the command to resume."
    )
    (one,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert one.info.status == "KILLED"
    assert "step 1 of 9" in run("runs").output


def test_an_interrupted_command_without_a_run_does_not_speak_of_one(store, monkeypatch):
    from hpt_mlflow.stages import models

    monkeypatch.setattr(models, "connect", lambda: os.kill(os.getpid(), signal.SIGINT))
    result = run("compare", "models:/hpt/1", "models:/hpt/2")
    assert (result.exit_code, result.output) == (130, "Interrupted.\n")
