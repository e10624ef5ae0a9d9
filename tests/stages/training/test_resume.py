"""Interrupted trainings go on: the real stages, in one process, against a real sqlite store."""

import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
import torch
from mlflow.tracking import MlflowClient
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow_runs import store_for_copies
from PIL import Image
from scenes import write_digits

import hpt_mlflow
from hpt_mlflow.report.figures import learning_curves
from hpt_mlflow.stages.progress import ProgressDisplay
from hpt_mlflow.stages.training import learn
from hpt_mlflow.stages.training import prepare as work
from hpt_mlflow.tracking.artifacts import state_step
from hpt_mlflow.tracking.models.store import find_model
from hpt_mlflow.tracking.runs.states import newest_state
from hpt_mlflow.tracking.tags import STATE_FOLDERS
from hpt_mlflow.training.loop import Trainer
from hpt_mlflow.training.plan import PRESETS
from hpt_mlflow.training.state import TENSORS_FILE

STEPS = 8
# In the folder of the store.
SHORT = {"data": "digits", "steps": STEPS, "batch_size": 32, "precision": "float32", "milestones": "3"}
PRETRAIN = SHORT | {"arch": "shufflenet_v2_x0_5", "image_size": 16}
SPEED = "train/images_per_second"


@pytest.fixture(scope="module")
def base_store(empty_database, tmp_path_factory):
    """A folder with a store in which a training was never interrupted."""
    folder = tmp_path_factory.mktemp("base")
    with pytest.MonkeyPatch.context() as patch, store_for_copies(folder, empty_database):
        patch.setattr(work, "REPORTS", 2)
        write_digits(folder / "digits")
        result = hpt_mlflow.pretrain(**PRETRAIN)
        return folder, weights(result), metrics(result.run_id)


@pytest.fixture(autouse=True)
def digits_and_reports_every_fourth_step(store, tmp_path, monkeypatch):
    write_digits(tmp_path / "digits")
    monkeypatch.setattr(work, "REPORTS", 2)


@pytest.fixture
def base(base_store, store, tmp_path):
    """The store has a model to start from."""
    shutil.copy(base_store[0] / "mlflow.db", tmp_path / "mlflow.db")


@pytest.fixture
def at_step(monkeypatch):
    """Do something, once, after a step of a training with a title."""
    train, display = Trainer.train, ProgressDisplay.__init__
    titles = []

    def install(step, action, title=""):
        left = [action]

        def named(self, said, *others):
            titles.append(said)
            display(self, said, *others)

        def wrapped(*everything):
            for progress in train(*everything):
                if progress.step == step and left and titles[-1].startswith(title):
                    left.pop()()
                yield progress

        monkeypatch.setattr(ProgressDisplay, "__init__", named)
        monkeypatch.setattr(Trainer, "train", wrapped)

    return install


def send(number):
    return lambda: os.kill(os.getpid(), number)


def fail():
    raise RuntimeError("broken")


def runs(stage):
    return mlflow.search_runs(
        search_all_experiments=True, filter_string=f"tags.`hpt.stage` = '{stage}'", output_format="list"
    )


def unfinished(stage):
    return [run for run in runs(stage) if run.info.status != "FINISHED"]


def metrics(run_id):
    """Steps and values of each metric, but for the speed, of which there are the steps alone."""
    client = MlflowClient()
    histories = {name: client.get_metric_history(run_id, name) for name in client.get_run(run_id).data.metrics}
    return {
        name: [(one.step, 0 if name == SPEED else one.value) for one in sorted(history, key=lambda one: one.step)]
        for name, history in histories.items()
        if name != "data/unreadable_images"
    }


def weights(result):
    return find_model(result.model_uri, "model", "hpt").backbone.state_dict()


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def milestones(run_id):
    return sorted(model.name for model in MlflowClient().search_logged_models(["0"], f"source_run_id = '{run_id}'"))


def state_files(run_id):
    """By the step of the state that they belong to."""
    client = MlflowClient()
    folder = Path(local_file_uri_to_path(mlflow.get_run(run_id).info.artifact_uri))
    return {state_step(client, run_id, name): folder / name / TENSORS_FILE for name in STATE_FOLDERS}


def interrupt(stage, **settings):
    """Run a stage that is interrupted; gives the id of its run."""
    with pytest.raises(KeyboardInterrupt):
        stage(**settings)
    (run,) = [run for run in runs(stage.__name__) if run.info.status == "KILLED"]
    return run.info.run_id


@pytest.mark.parametrize(("number", "step"), [(signal.SIGTERM, 3), (signal.SIGINT, 5)])
def test_an_interrupted_training_goes_on_as_if_it_never_had_been(
    base, base_store, at_step, capsys, monkeypatch, number, step
):
    drawn = []
    monkeypatch.setattr(learn, "learning_curves", lambda history: drawn.append(history) or learning_curves(history))
    _, expected_weights, expected_metrics = base_store
    at_step(step, send(number))
    settings = PRETRAIN | {"checkpoint_every": 0, "model_name": "interrupted"}
    run_id = interrupt(hpt_mlflow.pretrain, **settings)
    assert newest_state(run_id).step == step
    assert milestones(run_id) == ["step-3"]

    capsys.readouterr()
    result = hpt_mlflow.pretrain(**settings)
    said = capsys.readouterr().err
    assert f"resumes run {run_id} at step {step} of 8" in said
    assert "done again" not in said
    assert result.run_id == run_id
    assert result.model_uri == "models:/interrupted/1"
    assert same(weights(result), expected_weights)
    assert metrics(run_id) == expected_metrics
    assert milestones(run_id) == ["step-3", "step-8"]
    run = mlflow.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["hpt.resumed_at"] == str(step)
    assert {output.model_id for output in run.outputs.model_outputs} == {
        model.model_id for model in MlflowClient().search_logged_models(["0"], f"source_run_id = '{run_id}'")
    }
    last = {name: history[-1][1] for name, history in expected_metrics.items() if name != SPEED}
    assert last.items() <= result.metrics.items()
    assert [step for step, values in drawn[0] if "train/loss" in values] == [4, 8]


def test_what_is_done_again_after_a_failure_is_told_once(base, base_store, at_step, capsys):
    _, expected_weights, expected_metrics = base_store
    at_step(7, fail)
    settings = PRETRAIN | {"checkpoint_every": 3, "model_name": "failed"}
    with pytest.raises(RuntimeError, match="broken"):
        hpt_mlflow.pretrain(**settings)
    (run,) = unfinished("pretrain")
    assert run.info.status == "FAILED"
    run_id = run.info.run_id

    # From step 3: the one of step 6 is damaged.
    assert newest_state(run_id).step == 6
    damaged = state_files(run_id)[6]
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    result = hpt_mlflow.pretrain(**settings)
    assert "at step 3 of 8; 4 steps are repeated" in capsys.readouterr().err
    assert result.run_id == run_id
    assert same(weights(result), expected_weights)
    assert metrics(run_id) == expected_metrics
    assert milestones(run_id) == ["step-3", "step-8"]


def test_a_training_may_be_interrupted_again_and_again(base, base_store, at_step):
    _, expected_weights, expected_metrics = base_store
    settings = PRETRAIN | {"checkpoint_every": 5, "model_name": "often"}
    ids = []
    for step in (1, 6):
        at_step(step, send(signal.SIGTERM))
        ids.append(interrupt(hpt_mlflow.pretrain, **settings))
    result = hpt_mlflow.pretrain(**settings)
    assert set(ids) == {result.run_id}
    assert same(weights(result), expected_weights)
    assert metrics(result.run_id) == expected_metrics
    assert milestones(result.run_id) == ["step-3", "step-8"]


def test_the_warning_of_a_scheduler_keeps_the_state_and_goes_on(base, base_store, at_step):
    at_step(5, send(signal.SIGUSR1))
    result = hpt_mlflow.pretrain(**PRETRAIN, checkpoint_every=0, model_name="warned")
    assert newest_state(result.run_id).step == 5
    assert same(weights(result), base_store[1])
    assert metrics(result.run_id) == base_store[2]


def test_a_training_that_was_interrupted_before_it_kept_a_state_starts_again_in_its_run(base, base_store, at_step):
    at_step(2, fail)
    settings = PRETRAIN | {"checkpoint_every": 0, "model_name": "early"}
    with pytest.raises(RuntimeError, match="broken"):
        hpt_mlflow.pretrain(**settings)
    (run,) = unfinished("pretrain")
    result = hpt_mlflow.pretrain(**settings)
    assert result.run_id == run.info.run_id
    assert same(weights(result), base_store[1])
    assert metrics(result.run_id) == base_store[2]


def test_where_and_how_it_works_may_change_in_between(base, base_store, at_step):
    at_step(5, send(signal.SIGTERM))
    settings = PRETRAIN | {"model_name": "moved"}
    run_id = interrupt(hpt_mlflow.pretrain, **settings)
    result = hpt_mlflow.pretrain(**settings, workers=1, device="cpu", checkpoint_every=1, strict=True)
    assert result.run_id == run_id
    assert same(weights(result), base_store[1])


def test_other_work_and_never_start_anew(base, at_step):
    at_step(2, send(signal.SIGTERM))
    settings = PRETRAIN | {"model_name": "anew", "steps": 3, "milestones": "100%"}
    interrupted = interrupt(hpt_mlflow.pretrain, **settings)
    for change in ({"resume": "never"}, {"seed": 1}):
        assert hpt_mlflow.pretrain(**(settings | change)).run_id != interrupted
    assert mlflow.get_run(interrupted).info.status == "KILLED"
    # It is named, though a later one was finished.
    assert hpt_mlflow.pretrain(**settings, resume=interrupted).run_id == interrupted


def test_an_adaptation_goes_on_whatever_its_parent_is_called(base, at_step):
    MlflowClient().set_registered_model_alias("hpt", "base", "1")
    settings = SHORT | {"update": "bn", "steps": 6, "milestones": "2", "on_no_gain": "register"}
    at_step(5, send(signal.SIGTERM))
    run_id = interrupt(hpt_mlflow.adapt, **settings, parent="models:/hpt/latest", checkpoint_every=2)
    run = mlflow.get_run(run_id)
    assert run.data.tags["hpt.parent_model"] == "models:/hpt/1"
    assert "--parent models:/hpt/1" in run.data.tags["hpt.continue"]

    result = hpt_mlflow.adapt(**settings, parent="base")
    assert result.run_id == run_id
    assert result.chain == ("digits", "digits")
    straight = hpt_mlflow.adapt(**settings, parent="models:/hpt/1", resume="never")
    assert straight.run_id != run_id
    assert same(weights(result), weights(straight))
    assert metrics(run_id) == metrics(straight.run_id)


def make_small(monkeypatch):
    """Let the stages of `main` have small images and small batches."""
    gentle = PRESETS["gentle"]
    plans = {"pretrain": replace(gentle.pretrain, batch_size=32), "adapt": replace(gentle.adapt, batch_size=32)}
    monkeypatch.setitem(PRESETS, "gentle", replace(gentle, weights_image_size=32, **plans))


@pytest.fixture
def small_main(monkeypatch, tmp_path):
    """Main with trainings that are short, and no labels to evaluate by."""
    make_small(monkeypatch)
    (tmp_path / "plain").mkdir()
    for i in range(50):
        Image.new("RGB", (16, 16), (5 * i, 0, 0)).save(tmp_path / "plain" / f"{i}.png")
    return {"base": "digits", "target": str(tmp_path / "plain"), "base_steps": 3, "adapt_steps": 4}


def nested(run_id):
    everything = mlflow.search_runs(search_all_experiments=True, output_format="list")
    return {run.info.run_id: run for run in everything if run.data.tags.get("mlflow.parentRunId") == run_id}


@pytest.mark.slow
def test_main_that_is_interrupted_does_again_only_what_was_not_done(base, at_step, small_main):
    at_step(2, send(signal.SIGTERM), "adapt")
    main_id = interrupt(hpt_mlflow.main, **small_main)
    before = nested(main_id)
    assert sorted(run.info.status for run in before.values()) == ["FINISHED", "KILLED"]

    result = hpt_mlflow.main(**small_main)
    after = nested(main_id)
    assert result.run_id == main_id
    assert mlflow.get_run(main_id).info.status == "FINISHED"
    assert after.keys() == before.keys()
    assert [run.info.status for run in after.values()] == ["FINISHED"] * 2
    tags = {run.data.tags["hpt.stage"]: run.data.tags for run in after.values()}
    assert "hpt.resumed_at" not in tags["pretrain"]
    assert tags["adapt"]["hpt.resumed_at"] == "2"
    assert tags["adapt"]["hpt.parent_model"] == tags["pretrain"]["hpt.model"]
    assert result.model_uri == tags["adapt"]["hpt.model"]
    (adapted,) = [run_id for run_id, run in after.items() if run.data.tags["hpt.stage"] == "adapt"]
    assert [step for step, _ in metrics(adapted)["train/loss"]] == [2, 4]


@pytest.mark.slow
def test_a_stop_at_the_last_step_of_a_stage_stops_what_is_around_it(base, at_step, monkeypatch):
    make_small(monkeypatch)
    at_step(2, send(signal.SIGINT), "pretrain")
    settings = {"base": "digits", "target": "digits", "base_steps": 2, "adapt_steps": 2}
    with pytest.raises(KeyboardInterrupt):
        hpt_mlflow.main(**settings, model_name="stopped")
    assert [run.info.status for run in runs("main")] == ["KILLED"]
    assert not runs("adapt")
    # Of the adapted model or of its parent.
    assert hpt_mlflow.main(**settings, model_name="stopped").model_uri.startswith("models:/stopped/")
    assert [run.info.status for stage in ("main", "adapt") for run in runs(stage)] == ["FINISHED"] * 2


def test_a_result_that_the_registry_refuses_is_registered_by_the_same_command(store, monkeypatch, unused_port):
    monkeypatch.setenv("HPT_PATIENCE_SECONDS", "2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    mlflow.set_registry_uri(f"http://127.0.0.1:{unused_port}")
    with pytest.raises(hpt_mlflow.HptError, match="hpt sync"):
        hpt_mlflow.pretrain(**PRETRAIN)
    (failed,) = runs("pretrain")
    assert failed.info.status == "FAILED"
    mlflow.set_registry_uri(store)
    monkeypatch.setenv("HPT_PATIENCE_SECONDS", "20")
    result = hpt_mlflow.pretrain(**PRETRAIN)
    assert (result.run_id, result.model_uri) == (failed.info.run_id, "models:/hpt/1")
    assert mlflow.get_run(result.run_id).info.status == "FINISHED"


@pytest.mark.slow
def test_an_interrupted_training_that_keeps_deltas_goes_on_to_the_same(base, at_step):
    settings = SHORT | {"parent": "models:/hpt/1", "store": "delta", "judge": "none", "checkpoint_every": 0}
    settings |= {"update": "lora", "learning_rate": 0.01}
    straight = hpt_mlflow.adapt(**settings, model_name="straight")
    at_step(4, send(signal.SIGTERM))
    interrupt(hpt_mlflow.adapt, **settings)
    resumed = hpt_mlflow.adapt(**settings)
    assert same(weights(resumed), weights(straight))
    assert not same(weights(resumed), find_model("models:/hpt/1", "model", "hpt").backbone.state_dict())
