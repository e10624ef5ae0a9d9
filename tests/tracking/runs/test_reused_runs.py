from types import SimpleNamespace

import pytest
from mlflow.tracking import MlflowClient

from hpt_mlflow.tracking import tags as tag
from hpt_mlflow.tracking.runs.reuse import finished_run, metric_by_step

WORK = SimpleNamespace(fingerprint="f")


def finish(stage="evaluate", status="FINISHED", fingerprint="f", **tags):
    client = MlflowClient()
    named = {f"hpt.{name}": value for name, value in tags.items()}
    run_id = client.create_run("0", tags={tag.FINGERPRINT: fingerprint, "hpt.stage": stage} | named).info.run_id
    if stage != "evaluate":
        client.set_tag(run_id, "hpt.model", register("made", run_id))
    client.set_terminated(run_id, status)
    return run_id


def register(name="cats", run_id=None):
    """A version of a registered model, whatever is in it, that a run has made; its address."""
    client = MlflowClient()
    if not client.search_registered_models(f"name='{name}'"):
        client.create_registered_model(name)
    run = client.get_run(run_id) if run_id else client.create_run("0")
    version = client.create_model_version(name, run.info.artifact_uri, run.info.run_id)
    return f"models:/{name}/{version.version}"


@pytest.mark.usefixtures("store")
class TestFinishedRun:
    def test_the_newest_one_of_the_same_work_is_found(self):
        assert finished_run(WORK) is None
        for status in ("FAILED", "KILLED"):
            finish(status=status)
        finish(fingerprint="other")
        assert finished_run(WORK) is None
        finish()
        newest = finish()
        assert finished_run(WORK).info.run_id == newest

    def test_a_training_counts_as_long_as_its_model_is_there(self):
        trained = finish("adapt")
        assert finished_run(WORK).info.run_id == trained
        MlflowClient().delete_model_version("made", "1")
        assert finished_run(WORK) is None

    def test_a_model_that_another_training_has_made_under_the_same_number_does_not_count(self):
        finish("adapt")
        MlflowClient().delete_registered_model("made")
        other = finish("adapt", fingerprint="other")
        assert MlflowClient().get_run(other).data.tags["hpt.model"] == "models:/made/1"
        assert finished_run(WORK) is None

    def test_a_training_without_a_model_is_not_finished(self):
        MlflowClient().delete_tag(finish("adapt"), "hpt.model")
        assert finished_run(WORK) is None

    @pytest.mark.parametrize("stage", ["evaluate", "adapt"])
    def test_a_version_that_was_made_anew_under_the_same_number_is_another_model(self, stage):
        model = register()
        run = finish(stage, parent_model=model)
        assert finished_run(WORK).info.run_id == run
        MlflowClient().delete_registered_model("cats")
        assert register() == model
        assert finished_run(WORK) is None

    @pytest.mark.parametrize("parent", ["models:/m-0123", "weights.pth (sha256 0123)", "models:/gone/3", ""])
    def test_what_is_no_version_that_is_there_does_not_matter(self, parent):
        run = finish(parent_model=parent)
        assert finished_run(WORK).info.run_id == run


def test_figures_are_the_last_of_each_step(store):
    client = MlflowClient()
    run_id = client.create_run("0").info.run_id
    for value, time, step in ((0.1, 10, 5), (0.3, 30, 5), (0.2, 20, 5), (0.9, 1, 7)):
        client.log_metric(run_id, "test/accuracy", value, timestamp=time, step=step)
    assert metric_by_step(run_id, "test/accuracy") == {5: 0.3, 7: 0.9}
    assert metric_by_step(run_id, "test/auroc") == {}
