import json
import time

import mlflow
import pytest
from mlflow.entities import LoggedModelStatus
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED
from mlflow.tracking import MlflowClient
from stored import data, losses

from hpt_mlflow.errors import HptError
from hpt_mlflow.tracking import tags as tag
from hpt_mlflow.tracking.artifacts import models_of_run, state_step
from hpt_mlflow.tracking.delivery.entries import CONTENTS, content_of, deliver
from hpt_mlflow.tracking.delivery.run_client import RunClient
from hpt_mlflow.tracking.delivery.run_entries import BATCH
from hpt_mlflow.tracking.delivery.spool import Entry
from hpt_mlflow.tracking.tags import STATE_FOLDERS, VERSION_PLACEHOLDER
from hpt_mlflow.training.state import JSON_FILE, TENSORS_FILE, TrainingState


@pytest.fixture
def run_id(store):
    return MlflowClient().create_run("0").info.run_id


@pytest.fixture
def run(run_id):
    return RunClient(run_id, "0")


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "entry"
    made.mkdir()
    return made


def metrics(steps, model=None):
    return Entry(0, "metrics", {"metrics": [("loss", step / 2, 1000 + step, step, model) for step in steps]})


def state(folder, step):
    TrainingState(step, {}, {}, {}).write(folder)
    return Entry(0, "state", {"step": step}, folder)


def steps_kept(run_id):
    return [state_step(MlflowClient(), run_id, folder) for folder in STATE_FOLDERS]


def artifact(run_id, path):
    return mlflow.artifacts.load_text(f"{mlflow.get_run(run_id).info.artifact_uri}/{path}")


def model(folder, name="step-1", step=1):
    Model().save(str(folder / "MLmodel"))
    return Entry(0, "model", {"name": name, "step": step, "params": {"arch": "r18"}, "tags": {"a": "b"}}, folder)


def version(model="step-1", alias="base", description="", model_name="hpt"):
    payload = {"model": model, "model_name": model_name, "tags": {"hpt.chain": "cats"}, "alias": alias}
    return Entry(0, "version", payload | {"description": description})


def models():
    return list(MlflowClient().search_logged_models(["0"]))


def versions(name="hpt"):
    return list(MlflowClient().search_model_versions(f"name='{name}'"))


def linked(run_id):
    return [(output.model_id, output.step) for output in MlflowClient().get_run(run_id).outputs.model_outputs]


def test_metrics_delivered_twice_are_there_once(run, run_id):
    for _ in range(2):
        deliver(run, [metrics(range(10))])
    deliver(run, [metrics(range(5, 15))])
    assert losses(run_id) == [(step, step / 2) for step in range(15)]


def test_metrics_of_a_model_delivered_twice_are_there_once(run, run_id, folder):
    deliver(run, [model(folder)])
    for _ in range(2):
        deliver(run, [metrics([3], "step-1")])
    assert losses(run_id) == [(3, 1.5)]
    (logged,) = models()
    assert [(metric.key, metric.value, metric.step) for metric in logged.metrics] == [("loss", 1.5, 3)]


def test_metrics_of_a_model_of_others_stay_with_the_run(run, run_id, folder, monkeypatch):
    deliver(run, [model(folder)])
    log_batch = MlflowClient.log_batch

    def run_only(client, run_id, metrics=(), **more):
        if any(metric.model_id for metric in metrics):
            raise MlflowException("Permission denied", error_code=PERMISSION_DENIED)
        log_batch(client, run_id, metrics, **more)

    monkeypatch.setattr(MlflowClient, "log_batch", run_only)
    deliver(run, [metrics([3, 4], models()[0].model_id)])
    assert losses(run_id) == [(3, 1.5), (4, 2.0)]
    assert not models()[0].metrics


def test_metrics_of_a_model_by_its_id(run, folder):
    deliver(run, [model(folder)])
    deliver(run, [metrics([3], models()[0].model_id)])
    assert [metric.value for metric in models()[0].metrics] == [1.5]


def test_metrics_of_a_model_that_is_not_there_or_not_complete_are_refused(run, run_id):
    with pytest.raises(HptError, match="step-1 of the run is not there yet"):
        deliver(run, [metrics([3], "step-1")])
    MlflowClient().create_logged_model("0", "step-1", run_id)
    with pytest.raises(HptError, match="not there yet"):
        deliver(run, [metrics([3], "step-1")])
    assert losses(run_id) == []


def test_more_metrics_than_a_batch_takes_all_arrive(run, run_id):
    deliver(run, [metrics(range(2 * BATCH + 1))])
    assert len(losses(run_id)) == 2 * BATCH + 1


def test_metrics_say_that_the_run_is_worked_on(run, run_id):
    deliver(run, [metrics([1])])
    assert abs(time.time() - float(data(run_id).tags[tag.HEARTBEAT])) < 60


def test_params_and_tags_can_be_delivered_twice(run, run_id):
    for _ in range(2):
        deliver(run, [Entry(0, "params", {"settings/arch": "r18", "settings/lr": "0.1"})])
        deliver(run, [Entry(1, "tags", {"a": "b"})])
    assert data(run_id).params == {"settings/arch": "r18", "settings/lr": "0.1"}
    assert data(run_id).tags["a"] == "b"


def test_artifacts_delivered_twice_are_there_once(run, run_id, folder):
    (folder / "views.txt").write_text("views")
    for _ in range(2):
        deliver(run, [Entry(0, "artifacts", {}, folder)])
    assert [file.path for file in MlflowClient().list_artifacts(run_id)] == ["views.txt"]
    assert artifact(run_id, "views.txt") == "views"


def test_states_alternate_between_two_folders(run, run_id, folder):
    kept = []
    for step in (1, 2, 3, 4):
        deliver(run, [state(folder, step)])
        kept.append(steps_kept(run_id))
    assert kept == [[1, -1], [1, 2], [3, 2], [3, 4]]


def test_a_state_delivered_twice_is_there_once(run, run_id, folder):
    for step in (1, 2, 2, 2):
        deliver(run, [state(folder, step)])
    assert steps_kept(run_id) == [1, 2]


def test_an_older_state_never_replaces_a_newer_one(run, run_id, folder):
    for step in (5, 6, 1, 5):
        deliver(run, [state(folder, step)])
    assert steps_kept(run_id) == [5, 6]


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"format": "of another project", "step": 99}'])
def test_a_state_with_a_damaged_description_counts_as_none(run, run_id, folder, text):
    for step in (1, 2):
        deliver(run, [state(folder, step)])
    MlflowClient().log_text(run_id, text, f"{STATE_FOLDERS[1]}/{JSON_FILE}")
    assert steps_kept(run_id) == [1, -1]
    deliver(run, [state(folder, 3)])
    assert steps_kept(run_id) == [1, 3]


@pytest.mark.parametrize("missing", [TENSORS_FILE, JSON_FILE])
def test_a_state_that_arrived_in_part_counts_only_when_it_is_whole(run, run_id, folder, missing):
    for step in (1, 2):
        deliver(run, [state(folder, step)])
    broken = state(folder, 3)
    (folder / missing).rename(folder / "hidden")
    with pytest.raises(OSError, match=missing):
        deliver(run, [broken])
    assert steps_kept(run_id) == [1, 2]
    (folder / "hidden").rename(folder / missing)
    deliver(run, [broken])
    assert steps_kept(run_id) == [3, 2]


def test_a_model_is_complete_linked_and_knows_its_run(run, run_id, folder):
    deliver(run, [model(folder, step=7)])
    (logged,) = models()
    assert (logged.name, logged.status, logged.source_run_id) == ("step-1", LoggedModelStatus.READY, run_id)
    assert (logged.params, logged.tags["a"]) == ({"arch": "r18"}, "b")
    assert linked(run_id) == [(logged.model_id, 7)]
    described = Model.load(f"models:/{logged.model_id}")
    assert (described.model_id, described.run_id) == (logged.model_id, run_id)


def test_a_model_delivered_twice_is_there_once(run, run_id, folder):
    for _ in range(2):
        deliver(run, [model(folder)])
    (logged,) = models()
    assert linked(run_id) == [(logged.model_id, 1)]


def test_each_milestone_is_a_model(run, run_id, folder):
    for step in (1, 2, 1):
        deliver(run, [model(folder, f"step-{step}", step)])
    assert sorted(logged.name for logged in models()) == ["step-1", "step-2"]
    assert sorted(step for _, step in linked(run_id)) == [1, 2]


def test_a_model_whose_files_did_not_arrive_is_completed(run, run_id, folder):
    entry = model(folder)
    (folder / "MLmodel").rename(folder / "hidden")
    with pytest.raises(MlflowException):
        deliver(run, [entry])
    assert [logged.status for logged in models()] == [LoggedModelStatus.PENDING]
    (folder / "hidden").rename(folder / "MLmodel")
    deliver(run, [entry])
    (logged,) = models()
    assert logged.status == LoggedModelStatus.READY
    assert linked(run_id) == [(logged.model_id, 1)]
    assert Model.load(f"models:/{logged.model_id}").model_id == logged.model_id


def test_a_kill_while_a_model_is_signed_leaves_it_readable(run, folder, monkeypatch):
    entry = model(folder)
    before = (folder / "MLmodel").read_bytes()

    def half(_, path):
        with open(path, "w") as file:
            file.write("artifact_pa")
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr(Model, "save", half)
        with pytest.raises(KeyboardInterrupt):
            deliver(run, [entry])
    assert (folder / "MLmodel").read_bytes() == before
    deliver(run, [entry])
    assert models()[0].status == LoggedModelStatus.READY


def test_a_model_that_was_made_and_not_linked_is_completed(run, run_id, folder):
    made = MlflowClient().create_logged_model("0", "step-1", run_id)
    deliver(run, [model(folder)])
    (logged,) = models()
    assert (logged.model_id, logged.status) == (made.model_id, LoggedModelStatus.READY)
    assert linked(run_id) == [(made.model_id, 1)]


@pytest.mark.parametrize("complete_first", [True, False])
def test_a_complete_model_counts_where_a_name_is_there_twice(run_id, complete_first):
    client = MlflowClient()
    made = [client.create_logged_model("0", "step-1", run_id) for _ in range(2)]
    complete = made[0 if complete_first else 1]
    client.finalize_logged_model(complete.model_id, LoggedModelStatus.READY)
    assert models_of_run(client, run_id, "0")["step-1"].model_id == complete.model_id


def test_models_of_other_runs_are_none_of_ours(run, run_id, folder):
    client = MlflowClient()
    client.create_logged_model("0", "step-1", client.create_run("0").info.run_id)
    deliver(run, [model(folder)])
    assert len(models()) == 2
    assert list(models_of_run(client, run_id, "0")) == ["step-1"]


def test_all_milestones_are_found_however_many_there_are(run_id):
    client = MlflowClient()
    for step in range(101):
        client.create_logged_model("0", f"step-{step}", run_id)
    assert len(models_of_run(client, run_id, "0")) == 101


def test_a_version_has_alias_tags_and_an_address_that_the_run_knows(run, run_id, folder):
    deliver(run, [model(folder)])
    answer = deliver(run, [version(description=f"It is {VERSION_PLACEHOLDER}, really {VERSION_PLACEHOLDER}.")])
    assert answer == "models:/hpt/1"
    (registered,) = versions()
    assert registered.tags["hpt.chain"] == "cats"
    assert registered.run_id == run_id
    assert MlflowClient().get_model_version_by_alias("hpt", "base").version == registered.version
    assert data(run_id).tags["hpt.model"] == "models:/hpt/1"
    assert data(run_id).tags["mlflow.note.content"] == "It is models:/hpt/1, really models:/hpt/1."


def test_a_version_delivered_twice_is_there_once(run, run_id, folder):
    deliver(run, [model(folder)])
    answers = [deliver(run, [version(description=VERSION_PLACEHOLDER)]) for _ in range(2)]
    assert answers == ["models:/hpt/1"] * 2
    assert len(versions()) == 1
    assert data(run_id).tags["mlflow.note.content"] == "models:/hpt/1"


def test_each_model_is_a_version_of_its_own(run, folder):
    for name in ("step-1", "step-2"):
        deliver(run, [model(folder, name)])
    answers = [deliver(run, [version(name)]) for name in ("step-1", "step-2", "step-1")]
    assert answers == ["models:/hpt/1", "models:/hpt/2", "models:/hpt/1"]
    assert len(versions()) == 2


def test_a_model_can_be_a_version_under_two_names(run, folder):
    deliver(run, [model(folder)])
    assert deliver(run, [version()]) == "models:/hpt/1"
    for _ in range(2):
        assert deliver(run, [version(model_name="other")]) == "models:/other/1"
    (logged,) = MlflowClient().search_logged_models(["0"])
    # What MLflow's page of the model shows.
    linked = json.loads(logged.tags["mlflow.modelVersions"])
    assert linked == [{"name": "hpt", "version": 1}, {"name": "other", "version": 1}]


def test_a_version_whose_alias_did_not_arrive_gets_it_later(run, folder):
    deliver(run, [model(folder)])
    deliver(run, [version(alias=None)])
    assert MlflowClient().get_registered_model("hpt").aliases == {}
    deliver(run, [version(alias="base")])
    assert len(versions()) == 1
    assert str(MlflowClient().get_model_version_by_alias("hpt", "base").version) == "1"


def test_a_version_of_a_model_that_is_not_there_is_refused(run):
    with pytest.raises(HptError, match="not there yet"):
        deliver(run, [version()])
    assert MlflowClient().search_registered_models() == []


@pytest.mark.parametrize("name", ['the "best"', "a\\b", "häuser", "x y"])
def test_a_version_under_an_unusual_name(run, folder, name):
    deliver(run, [model(folder)])
    for _ in range(2):
        assert deliver(run, [version(model_name=name)]) == f"models:/{name}/1"


def test_the_end_can_be_delivered_twice(run, run_id):
    for _ in range(2):
        deliver(run, [Entry(0, "end", {"status": "KILLED", "end_time": 12345})])
    info = MlflowClient().get_run(run_id).info
    assert (info.status, info.end_time) == ("KILLED", 12345)
    assert run.status() == "KILLED"


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        ("metrics", {"metrics": [["loss", 0.5, 1001, 1, None], ["probe", 1.0, 1002, 2, "step-1"]]}),
        ("metrics", {"metrics": [["probe", 1.0, 1002, 2, "step-1", "cats", "0123456789abcdef"]]}),
        ("params", {"settings/arch": "r18"}),
        ("tags", {"hpt.chain": "cats", "kind": "a tag"}),
        ("artifacts", {"files": ["views.png"]}),
        ("state", {"step": 7}),
        ("model", {"name": "step-1", "step": 1, "params": {"arch": "r18"}, "tags": {"a": "b"}}),
        ("version", {"model": "step-1", "model_name": "hpt", "tags": {}, "alias": "base", "description": "It is"}),
        ("end", {"status": "KILLED", "end_time": 12345, "after": "version", "if_running": True}),
    ],
)
def test_what_spools_hold_keeps_its_spelling(kind, payload):
    content = content_of(Entry(0, kind, json.loads(json.dumps(payload))))
    assert type(content) is CONTENTS[kind]
    assert content.payload == payload


def test_an_end_of_an_earlier_version_says_no_more_than_its_status():
    end = content_of(Entry(0, "end", {"status": "FINISHED", "end_time": 1}))
    assert (end.after, end.if_running) == (None, False)


@pytest.mark.parametrize(("kind", "payload"), [("from_a_later_version", {}), ("state", {}), ("end", {"states": 1})])
def test_an_entry_of_another_version_is_refused_by_its_kind(run, kind, payload):
    with pytest.raises(HptError, match=f"this version of hpt_mlflow cannot read '{kind}'"):
        deliver(run, [Entry(0, kind, payload)])


@pytest.mark.parametrize("kind", ["artifacts", "state", "model"])
def test_an_entry_whose_files_are_gone_is_refused(run, run_id, kind):
    payload = {"artifacts": {}, "state": {"step": 1}, "model": {"name": "a", "step": 1, "params": {}, "tags": {}}}
    with pytest.raises(HptError, match="the files of entry 3 are gone"):
        deliver(run, [Entry(3, kind, payload[kind])])
    assert MlflowClient().list_artifacts(run_id) == []
