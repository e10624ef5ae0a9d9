import os
import re
import shutil
import signal
import sys
from contextlib import contextmanager, suppress

import mlflow
import pytest
from mlflow.tracking import MlflowClient
from PIL import Image

from hpt_mlflow.errors import HptError
from hpt_mlflow.tracking.delivery.spool import Spool, spool_folder
from hpt_mlflow.tracking.identity import Identity
from hpt_mlflow.tracking.runs.nesting import nested_environment
from hpt_mlflow.tracking.runs.resume import earlier_run
from hpt_mlflow.tracking.runs.stage_run import NotDeliveredError, stage_run

CATS = Identity({"data": "cats"}, "hpt pretrain cats")


def interrupted(*steps):
    """The id of a run that broke off after it had logged a loss at these steps."""
    with suppress(RuntimeError), stage_run("pretrain cats", CATS) as run:
        for step in steps:
            run.metrics({"train/loss": step / 2}, step)
        raise RuntimeError("broken")
    return run.run_id


@contextmanager
def continued():
    with earlier_run(CATS, "auto", None) as earlier, stage_run("pretrain cats", CATS, earlier) as run:
        yield run


def only_run():
    (run,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    return run


def history(key):
    return [(m.step, m.value) for m in MlflowClient().get_metric_history(only_run().info.run_id, key)]


def test_a_run_has_its_name_and_its_metrics_and_ends_finished(store):
    with stage_run("pretrain cats", CATS) as run:
        assert run.history == []
        for value in (1.0, 2.0):
            run.metrics({"train/loss": value}, 1)
    assert only_run().info.run_name == "pretrain cats"
    assert only_run().info.status == "FINISHED"
    assert history("train/loss") == [(1, 1.0), (1, 2.0)]


def test_an_exception_ends_the_run_failed_with_its_metrics(store):
    def stage():
        with stage_run("pretrain cats") as run:
            run.metrics({"train/loss": 2.0}, 1)
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        stage()
    assert only_run().info.status == "FAILED"
    assert history("train/loss") == [(1, 2.0)]


@pytest.fixture
def ctrl_c_interrupts():
    """As in a terminal; a shell lets what it starts in the background ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_killed_with_its_metrics(store, ctrl_c_interrupts, number):
    before = signal.getsignal(number)

    def stage():
        with stage_run("pretrain cats") as run:
            run.metrics({"train/loss": 2.0}, 1)
            os.kill(os.getpid(), number)

    with pytest.raises(KeyboardInterrupt):
        stage()
    assert only_run().info.status == "KILLED"
    assert history("train/loss") == [(1, 2.0)]
    assert signal.getsignal(number) == before


def test_the_run_that_mlflow_run_made_is_taken_over_and_named(store, monkeypatch):
    made = MlflowClient().create_run("0", run_name="gaudy-crab-123")
    monkeypatch.setenv("MLFLOW_RUN_ID", made.info.run_id)
    with stage_run("pretrain cats") as run:
        assert run.run_id == made.info.run_id
    assert only_run().info.run_name == "pretrain cats"


def test_a_name_that_the_user_gave_stays(store, monkeypatch):
    made = MlflowClient().create_run("0", run_name="my first try")
    monkeypatch.setenv("MLFLOW_RUN_ID", made.info.run_id)
    with stage_run("pretrain cats"):
        pass
    assert only_run().info.run_name == "my first try"


def test_settings_do_not_clash_with_what_mlflow_run_logged(store):
    with stage_run("pretrain cats") as run:
        MlflowClient().log_param(run.run_id, "arch", "''")
        run.params({"arch": "resnet18"})
    assert only_run().data.params == {"arch": "''", "settings/arch": "resnet18"}


def test_pictures_on_the_step_axis_are_as_mlflow_logs_them(store, tmp_path):
    picture = Image.new("RGB", (600, 300))
    with stage_run("pretrain cats") as run:
        run.image(picture, "nearest neighbours", 3)
        run.image(picture, "nearest neighbours", 3)
    MlflowClient().log_image(run.run_id, picture, key="nearest neighbours", step=3)
    files = [file.path for file in MlflowClient().list_artifacts(run.run_id, "images")]
    assert len(files) == 4
    shape = re.compile(r"images/nearest neighbours\+step\+3\+timestamp\+\d+\+[0-9a-f-]{36}(\.png|\+compressed\.webp)")
    assert all(shape.fullmatch(file) for file in files)
    sizes = {Image.open(MlflowClient().download_artifacts(run.run_id, file, str(tmp_path))).size for file in files}
    assert sizes == {(600, 300), (256, 128)}
    assert only_run().data.tags["mlflow.loggedImages"] == "True"


def test_pictures_and_tables_become_artifacts(store):
    with stage_run("pretrain cats") as run:
        run.picture(Image.new("RGB", (4, 4)), "views.png")
        run.table({"image": ["a.png"], "reason": ["empty"]}, "unreadable_images.json")
    files = {file.path for file in MlflowClient().list_artifacts(run.run_id)}
    assert files == {"views.png", "unreadable_images.json"}
    table = mlflow.load_table("unreadable_images.json", run_ids=[run.run_id])
    assert table.to_dict("list") == {"image": ["a.png"], "reason": ["empty"]}


def test_what_mlflow_refuses_is_kept_and_named_and_everything_else_is_delivered(store, caplog):
    def stage():
        with stage_run("pretrain cats") as run:
            run.tags({"": "no name"})
            run.metrics({"train/loss": 1.0}, 1)

    with pytest.raises(NotDeliveredError, match="hpt sync") as caught:
        stage()
    assert "\n" not in str(caught.value)
    assert only_run().info.status == "FINISHED"
    assert history("train/loss") == [(1, 1.0)]
    (entry,) = Spool.open(spool_folder(only_run().info.run_id)).entries()
    assert (entry.kind, entry.payload) == ("tags", {"": "no name"})
    assert caplog.text.count("MLflow refuses tags") == 1


def test_a_continued_run_is_the_same_run_and_ends_finished(store):
    broken = interrupted(1)
    assert only_run().info.status == "FAILED"
    with continued() as run:
        assert only_run().info.status == "RUNNING"
    assert run.run_id == broken
    assert only_run().info.status == "FINISHED"


def test_a_continued_run_knows_its_metrics_in_the_order_of_steps(store):
    interrupted(3, 1, 2)
    with continued() as run:
        assert run.history == [(step, {"train/loss": step / 2}) for step in (1, 2, 3)]


def test_steps_that_are_done_again_are_not_told_again(store):
    interrupted(1, 2)
    with continued() as run:
        for step in (2, 3):
            run.metrics({"train/loss": 99.0, "train/speed": 5.0}, step)
    assert history("train/loss") == [(1, 0.5), (2, 1.0), (3, 99.0)]
    assert history("train/speed") == [(2, 5.0), (3, 5.0)]


def test_a_stage_inside_a_stage_inside_a_stage(store):
    with stage_run("main") as outer, stage_run("pretrain cats") as middle, stage_run("evaluate") as inner:
        pass
    assert mlflow.get_run(middle.run_id).data.tags["mlflow.parentRunId"] == outer.run_id
    assert mlflow.get_run(inner.run_id).data.tags["mlflow.parentRunId"] == middle.run_id


def test_a_stage_inside_a_run_of_mlflow_is_nested_and_leaves_it_active(store):
    with mlflow.start_run() as outer:
        with stage_run("pretrain cats") as run:
            pass
        assert mlflow.active_run().info.run_id == outer.info.run_id
    assert mlflow.get_run(run.run_id).data.tags["mlflow.parentRunId"] == outer.info.run_id


def test_a_stage_that_fails_does_not_end_the_one_around_it(store):
    with stage_run("main") as outer:
        with suppress(RuntimeError), stage_run("pretrain cats") as inner:
            raise RuntimeError("broken")
        with stage_run("adapt dogs") as later:
            pass
    states = [mlflow.get_run(run.run_id).info.status for run in (outer, inner, later)]
    assert states == ["FINISHED", "FAILED", "FINISHED"]
    assert mlflow.get_run(later.run_id).data.tags["mlflow.parentRunId"] == outer.run_id


@pytest.mark.parametrize("by_mlflow_run", [True, False])
def test_the_run_that_mlflow_run_made_becomes_a_note_below_the_one_that_goes_on(store, monkeypatch, by_mlflow_run):
    broken = interrupted(1)
    tags = {"mlflow.project.entryPoint": "pretrain"} if by_mlflow_run else {}
    made = MlflowClient().create_run("0", run_name="gaudy-crab-123", tags=tags).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", made)
    with continued() as run:
        assert run.run_id == broken
    note = mlflow.get_run(made)
    assert note.info.run_name == "resumes: pretrain cats"
    assert note.data.tags["mlflow.parentRunId"] == note.data.tags["hpt.continues"] == broken
    assert broken in note.data.tags["mlflow.note.content"]
    assert "hpt.fingerprint" not in note.data.tags
    assert mlflow.get_run(broken).info.run_name == "pretrain cats"
    assert mlflow.get_run(broken).info.status == "FINISHED"


def test_the_run_that_mlflow_run_made_is_for_the_first_stage_only(store, monkeypatch):
    made = MlflowClient().create_run("0", run_name="gaudy-crab-123").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", made)
    with stage_run("main") as outer, stage_run("pretrain cats") as inner:
        pass
    assert outer.run_id == made
    assert inner.run_id != made


def test_a_run_whose_spool_cannot_be_made_is_not_left_running(store, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HPT_SPOOL", str(tmp_path / "file"))
    with pytest.raises(HptError, match="HPT_SPOOL"), stage_run("pretrain cats"):
        pass
    runs = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert [run.info.status for run in runs if run.info.status == "RUNNING"] == []


def test_a_run_without_a_guard_warns_and_finishes(store, monkeypatch, caplog):
    monkeypatch.setattr(sys, "executable", "/no/python")
    with stage_run("pretrain cats") as run:
        run.metrics({"train/loss": 2.0}, 1)
        run.warn("another thing")
    assert only_run().info.status == "FINISHED"
    assert history("train/loss") == [(1, 2.0)]
    warning = only_run().data.tags["hpt.warning"]
    assert warning.startswith("no process guards this run: cannot start another process (")
    assert warning.endswith("; another thing")
    assert [record.message for record in caplog.records if "guards" in record.message] == [
        warning.removesuffix("; another thing")
    ]


def test_a_stage_belongs_to_the_experiment_of_the_users_run_around_it(store):
    experiment_id = mlflow.create_experiment("mine")
    with mlflow.start_run(experiment_id=experiment_id) as around, stage_run("main") as outer, stage_run("cats") as run:
        assert nested_environment(run.run_id)["MLFLOW_EXPERIMENT_ID"] == experiment_id
    for inner, parent in ((run, outer), (outer, around.info)):
        info = mlflow.get_run(inner.run_id)
        assert info.info.experiment_id == experiment_id == inner.experiment_id
        assert info.data.tags["mlflow.parentRunId"] == parent.run_id
    with stage_run("alone") as alone:
        pass
    assert alone.experiment_id == "0"


def test_an_interrupted_stage_is_found_in_the_experiment_of_the_users_run(store):
    experiment_id = mlflow.create_experiment("mine")
    with mlflow.start_run(experiment_id=experiment_id) as around:
        broken = interrupted(1)
        with earlier_run(CATS, "auto", around.info.run_id) as earlier, stage_run("pretrain cats", CATS, earlier) as run:
            assert run.run_id == broken


def test_stages_inside_one_that_is_continued_belong_to_its_experiment(store, monkeypatch):
    elsewhere = mlflow.create_experiment("mine")
    with monkeypatch.context() as patched:
        patched.setenv("MLFLOW_EXPERIMENT_ID", elsewhere)
        broken = interrupted(1)
    with earlier_run(CATS, broken, None) as earlier, stage_run("main", CATS, earlier), stage_run("adapt dogs") as inner:
        pass
    assert inner.experiment_id == elsewhere


def test_what_was_in_memory_only_is_not_said_to_wait_on_the_disk(store, monkeypatch):
    monkeypatch.setenv("HPT_PATIENCE_SECONDS", "0.5")

    def stage():
        with stage_run("pretrain cats") as run:
            shutil.rmtree(spool_folder(run.run_id))
            run.tags({"": "no name"})

    with pytest.raises(NotDeliveredError) as caught:
        stage()
    assert not spool_folder(only_run().info.run_id).exists()
    assert "waits in" not in str(caught.value)
