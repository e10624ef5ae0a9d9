import os
import signal

import mlflow
import pytest
from mlflow.tracking import MlflowClient
from PIL import Image

from hpt_mlflow.tracking.guard import have_last_word
from hpt_mlflow.tracking.runs import NotDeliveredError, stage_run
from hpt_mlflow.tracking.spool import Spool, spool_folder


def only_run():
    (run,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    return run


def history(key):
    return [(m.step, m.value) for m in MlflowClient().get_metric_history(only_run().info.run_id, key)]


def test_a_run_has_its_name_and_ends_finished(store):
    with stage_run("pretrain cats"):
        pass
    assert only_run().info.run_name == "pretrain cats"
    assert only_run().info.status == "FINISHED"


def test_an_exception_ends_the_run_failed_with_its_metrics(store):
    def stage():
        with stage_run("pretrain cats") as run:
            run.metrics({"train/loss": 2.0}, 1)
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        stage()
    assert only_run().info.status == "FAILED"
    assert history("train/loss") == [(1, 2.0)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_killed_with_its_metrics(store, number):
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


def test_metrics_go_out_in_order_and_once(store):
    with stage_run("pretrain cats") as run:
        for step in range(2000):
            run.metrics({"train/loss": step / 2}, step)
    assert history("train/loss") == [(step, step / 2) for step in range(2000)]


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


def test_a_stage_inside_a_run_is_nested(store):
    with stage_run("main") as outer, stage_run("pretrain cats") as inner:
        pass
    assert mlflow.get_run(inner.run_id).data.tags["mlflow.parentRunId"] == outer.run_id


def test_settings_do_not_clash_with_what_mlflow_run_logged(store):
    with stage_run("pretrain cats") as run:
        MlflowClient().log_param(run.run_id, "arch", "''")
        run.params({"arch": "resnet18"})
    assert only_run().data.params == {"arch": "''", "settings/arch": "resnet18"}


def test_pictures_and_tables_become_artifacts(store):
    with stage_run("pretrain cats") as run:
        run.picture(Image.new("RGB", (4, 4)), "views.png")
        run.table({"image": ["a.png"], "reason": ["empty"]}, "unreadable_images.json")
    files = {file.path for file in MlflowClient().list_artifacts(run.run_id)}
    assert files == {"views.png", "unreadable_images.json"}
    table = mlflow.load_table("unreadable_images.json", run_ids=[run.run_id])
    assert table.to_dict("list") == {"image": ["a.png"], "reason": ["empty"]}


def test_the_last_word_sets_failed_back_to_killed_and_keeps_the_end(store):
    with stage_run("pretrain cats") as run:
        pass
    client = MlflowClient()
    client.set_terminated(run.run_id, "FAILED", 12345)
    have_last_word(run.run_id)
    assert only_run().info.status == "KILLED"
    assert only_run().info.end_time == 12345


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
