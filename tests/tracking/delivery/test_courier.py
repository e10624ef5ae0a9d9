import os
import shutil
import socket
import threading
import time

import mlflow
import pytest
from mlflow.models import Model as MlflowModel
from mlflow.tracking import MlflowClient
from processes import wait_for
from safetensors.numpy import save_file
from stored import data, losses, outage

from hpt_mlflow.errors import HptError
from hpt_mlflow.tracking import tags as tag
from hpt_mlflow.tracking.artifacts import state_step
from hpt_mlflow.tracking.delivery import courier as courier_module
from hpt_mlflow.tracking.delivery.courier import Courier
from hpt_mlflow.tracking.delivery.entries import deliver
from hpt_mlflow.tracking.delivery.model_entries import Model, Version
from hpt_mlflow.tracking.delivery.run_client import RunClient
from hpt_mlflow.tracking.delivery.run_entries import End, Files, Metrics, Params, State, Tags
from hpt_mlflow.tracking.delivery.spool import Owner, Spool, SpoolError, spool_folder
from hpt_mlflow.tracking.tags import STATE_FOLDERS
from hpt_mlflow.training.state import JSON_FILE, TENSORS_FILE, TrainingState

SECONDS = 30.0


@pytest.fixture
def run_id(store):
    return MlflowClient().create_run("0").info.run_id


@pytest.fixture
def spool():
    opened = Spool.open(spool_folder("run-1"), Owner("run-1", "0", "cats", "", "", os.getpid(), socket.gethostname()))
    yield opened
    opened.close()


@pytest.fixture
def courier(spool, run_id):
    started = Courier(spool, RunClient(run_id, "0"), "cats")
    yield started
    started.close(0)


@pytest.fixture
def courier_without_server(spool, lose_server):
    lose_server()
    started = Courier(spool, RunClient("0" * 32, "0"), "cats")
    yield started
    started.close(0)


@pytest.fixture
def delivered(monkeypatch):
    """What is delivered, as it is: kinds and numbers of each call."""
    seen = []

    def recorded(client, entries):
        answer = deliver(client, entries)
        seen.append((entries[0].kind, [entry.number for entry in entries]))
        return answer

    monkeypatch.setattr(courier_module, "deliver", recorded)
    return seen


def loss(step, model=None):
    return Metrics([["loss", step / 2, 1000 + step, step, model]])


def state(step):
    def fill(folder):
        TrainingState(step, {}, {}, {}).write(folder)

    return fill


def saved_model(folder):
    MlflowModel().save(str(folder / "MLmodel"))


def put_model(courier, name):
    return courier.put(Model(name, 1, {}, {}), saved_model)


def fail(folder):
    raise OSError("no room")


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith(("hpt_write", "hpt_send"))]


def test_what_is_put_arrives_and_leaves_the_spool(courier, run_id):
    courier.put(Tags({"a": "b"}))
    courier.put(Params({"c": "d"}))
    courier.put(loss(1))
    courier.put(Files(), lambda folder: (folder / "views.txt").write_text("views"))
    assert courier.flush(SECONDS) == []
    assert data(run_id).tags["a"] == "b"
    assert data(run_id).params == {"c": "d"}
    assert losses(run_id) == [(1, 0.5)]
    assert [file.path for file in MlflowClient().list_artifacts(run_id)] == ["views.txt"]
    assert courier.spool.entries() == []


def test_answers_come_when_it_is_delivered(courier):
    assert courier.put(Tags({"a": "b"})).result(SECONDS) == ""
    put_model(courier, "step-1")
    assert courier.put(Version("step-1", "hpt", {})).result(SECONDS) == "models:/hpt/1"


def test_the_order_is_kept_across_kinds(courier, delivered):
    for number in range(0, 12, 3):
        courier.put(Tags({"a": str(number)}))
        courier.put(loss(number))
        courier.put(Params({f"p{number}": "x"}))
    courier.flush(SECONDS)
    assert [number for _, numbers in delivered for number in numbers] == list(range(12))


def test_metrics_go_out_together(spool, run_id, delivered):
    for step in range(1000):
        spool.add("metrics", loss(step).payload)
    courier = Courier(spool, RunClient(run_id, "0"), "cats")
    assert courier.close(SECONDS) == []
    assert [len(numbers) for _, numbers in delivered] == [1000]
    assert losses(run_id) == [(step, step / 2) for step in range(1000)]


def test_metrics_wait_for_more_unless_something_else_waits_behind_them(courier, delivered):
    courier.put(loss(1))
    courier.put(loss(2))
    courier.wait_until_written()
    assert delivered == []
    courier.put(Tags({"a": "b"})).result(SECONDS)
    assert delivered == [("metrics", [0, 1]), ("tags", [2])]


def test_metrics_go_out_after_a_while_by_themselves(courier, run_id, monkeypatch):
    monkeypatch.setattr(courier_module, "PAUSE_SECONDS", 0.0)
    courier.put(loss(1)).result(SECONDS)
    assert losses(run_id) == [(1, 0.5)]


def test_what_is_in_the_spool_already_goes_first(spool, run_id, delivered):
    spool.add("tags", {"a": "old"})
    spool.add("artifacts", {}, lambda folder: (folder / "old.txt").write_text("old"))
    courier = Courier(spool, RunClient(run_id, "0"), "cats")
    courier.put(Tags({"a": "new"}))
    assert courier.close(SECONDS) == []
    assert delivered == [("tags", [0]), ("artifacts", [1]), ("tags", [2])]
    assert data(run_id).tags["a"] == "new"


def test_putting_never_waits_for_a_server_that_hangs(spool, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "600")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(SECONDS)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.getsockname()[1]}")
        mlflow.set_tracking_uri(None)
        courier = Courier(spool, RunClient("0" * 32, "0"), "cats")
        courier.put(Tags({"a": "b"}))
        with server.accept()[0]:
            start = time.monotonic()
            for step in range(200):
                courier.put(loss(step))
            courier.put(State(1), state(1))
            courier.wait_until_written()
            assert len(courier.close(0.1)) == 202
            assert time.monotonic() - start < 10
        assert [entry.kind for entry in spool.entries()] == ["tags"] + ["metrics"] * 200 + ["state"]


def test_putting_never_waits_for_the_disk(courier):
    may_go_on = threading.Event()
    slow = courier.put(Files(), lambda folder: may_go_on.wait(SECONDS))
    courier.put(Tags({"a": "b"}))
    assert not slow.done()
    may_go_on.set()
    courier.wait_until_written()
    assert courier.flush(SECONDS) == []


def test_a_server_that_hangs_is_given_up_after_its_timeout(spool, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.getsockname()[1]}")
        mlflow.set_tracking_uri(None)
        courier = Courier(spool, RunClient("0" * 32, "0"), "cats")
        courier.put(Tags({"a": "b"}))
        courier.wait_until_written()
        wait_for(lambda: "does not answer" in caplog.text)
        assert [parcel.entry.kind for parcel in courier.close(0)] == ["tags"]


def test_nobody_there_is_told_once_and_without_internals(courier_without_server, caplog):
    for number in range(3):
        courier_without_server.put(Tags({"a": str(number)}))
        courier_without_server.wait_until_written()
        left = courier_without_server.flush(0.2)
        wait_for(lambda: "does not answer" in caplog.text)
    assert [parcel.entry.payload["a"] for parcel in left] == ["0", "1", "2"]
    assert caplog.text.count("does not answer") == 1
    assert "MLFLOW_TRACKING_URI" in courier_without_server.why(left)
    assert "HTTPConnectionPool" not in caplog.text
    assert [entry.payload["a"] for entry in courier_without_server.spool.entries()] == ["0", "1", "2"]


def test_an_outage_is_told_once_and_its_end_as_well(courier, run_id, tmp_path, caplog):
    for number in ("1", "2"):
        with outage(tmp_path):
            courier.put(Tags({f"first{number}": "x"}))
            courier.wait_until_written()
            assert len(courier.flush(0.2)) == 1
            courier.put(Tags({f"second{number}": "y"}))
            courier.wait_until_written()
            assert len(courier.flush(0.2)) == 2
            wait_for(lambda told=int(number): caplog.text.count("does not answer") == told)
        assert courier.flush(SECONDS) == []
    assert {"first1", "second1", "first2", "second2"} <= set(data(run_id).tags)
    told = [record.getMessage() for record in caplog.records if record.name == "hpt_mlflow"]
    assert ["does not answer" in line for line in told] == [True, False, True, False]
    assert ["answers again" in line for line in told] == [False, True, False, True]
    assert "refuses" not in caplog.text


def test_old_training_states_are_dropped_while_they_wait(courier, run_id, tmp_path):
    with outage(tmp_path):
        answers = [courier.put(State(step), state(step)) for step in range(6)]
        courier.wait_until_written()
        left = [parcel.entry.payload["step"] for parcel in courier.flush(0.2)]
        # One of the older ones may have been on its way.
        assert left[-2:] == [4, 5]
        assert len(left) <= 3
        assert [entry.payload["step"] for entry in courier.spool.entries()] == left
        assert len(list(courier.spool.folder.glob(f"*/{JSON_FILE}"))) == len(left)
        for step in set(range(6)) - set(left):
            with pytest.raises(HptError, match="newer"):
                answers[step].result(0)
    assert courier.flush(SECONDS) == []
    assert sorted(state_step(MlflowClient(), run_id, folder) for folder in STATE_FOLDERS) == [4, 5]


def test_a_state_that_is_dropped_on_its_way_does_not_end_the_deliveries(courier, monkeypatch):
    on_its_way, may_go_on = threading.Event(), threading.Event()
    deliver_state = State.deliver

    def slow(self, client, folder):
        if self.step == 2:
            on_its_way.set()
            may_go_on.wait(SECONDS)
            return
        deliver_state(self, client, folder)

    monkeypatch.setattr(State, "deliver", slow)
    courier.put(State(1), lambda folder: None)
    courier.put(State(2), state(2))
    assert on_its_way.wait(SECONDS)
    for step in (3, 4, 5):
        courier.put(State(step), state(step))
    courier.wait_until_written()
    may_go_on.set()
    assert courier.put(Tags({"a": "b"})).result(SECONDS / 3) == ""


def test_no_state_is_kept_where_none_is_of_use_any_more(courier, run_id, tmp_path):
    with outage(tmp_path):
        for step in range(3):
            courier.put(State(step), state(step))
        courier.put(Tags({"a": "b"}))
        courier.wait_until_written()
        courier.flush(0.2)
        courier.drop_states(keep=0)
        assert len(courier.spool.entries()) <= 2
    assert courier.flush(SECONDS) == []
    assert data(run_id).tags["a"] == "b"


def test_a_state_that_was_sent_is_not_dropped_before_its_answer_is_given(courier, spool, monkeypatch):
    remove = spool.remove

    def removing(entry):
        courier.drop_states(keep=0)
        remove(entry)

    monkeypatch.setattr(spool, "remove", removing)
    sent = courier.put(State(1), state(1))
    assert sent.result(SECONDS) == ""
    # What comes behind it is sent, too.
    assert courier.put(Tags({"a": "b"})).result(SECONDS) == ""
    assert courier.flush(SECONDS) == []


def test_a_state_that_was_refused_is_dropped_with_the_others(courier):
    courier.put(State(1), lambda folder: None)
    assert len(courier.flush(SECONDS)) == 1
    courier.drop_states(keep=0)
    assert courier.flush(SECONDS) == []


def test_what_is_refused_steps_aside_and_is_told_once(courier, run_id, caplog):
    first = courier.put(Tags({"": "no name"}))
    courier.put(loss(1))
    courier.put(Tags({"": "no name again"}))
    courier.put(Tags({"a": "b"}))
    left = courier.flush(SECONDS)
    assert [parcel.entry.payload for parcel in left] == [{"": "no name"}, {"": "no name again"}]
    assert not first.done()
    assert data(run_id).tags["a"] == "b"
    assert losses(run_id) == [(1, 0.5)]
    assert caplog.text.count("refuses") == 1
    assert courier.why(left) == left[0].refusal
    assert [entry.number for entry in courier.spool.entries()] == [0, 2]


@pytest.mark.parametrize(
    ("content", "fill", "words"),
    [
        (Files(["views.png"]), lambda folder: (folder / "views.png").write_text(""), "the files views.png"),
        (State(7), lambda folder: None, "the training state of step 7"),
        (Model("step-7", 7, {}, {}), lambda folder: None, "the model step-7"),
        (Metrics([["", 1.0, 1, 1, None]]), None, "metrics"),
        (Version("step-7", "hpt", {}), None, "a version of hpt"),
        (End("GONE", 1), None, "the end as GONE"),
    ],
)
def test_what_is_refused_is_named(courier, tmp_path, run_id, caplog, content, fill, words):
    artifacts = MlflowClient().get_run(run_id).info.artifact_uri
    os.makedirs(os.path.dirname(artifacts), exist_ok=True)
    with open(artifacts, "w"):
        courier.put(content, fill)
        assert len(courier.flush(SECONDS)) == 1
    assert f"cats: MLflow refuses {words} (" in caplog.text


@pytest.mark.parametrize("kind", ["from_a_later_version", "artifacts"])
def test_a_strange_entry_does_not_hold_up_the_others(spool, run_id, kind):
    spool.add(kind, {}, lambda folder: None)
    shutil.rmtree(spool.folder / "000000000")
    courier = Courier(spool, RunClient(run_id, "0"), "cats")
    courier.put(Tags({"a": "b"}))
    left = courier.close(SECONDS / 6)
    assert [parcel.entry.kind for parcel in left] == [kind]
    assert data(run_id).tags["a"] == "b"


def test_one_metric_that_is_refused_does_not_hold_up_the_others(courier, run_id):
    courier.put(loss(1))
    courier.put(Metrics([["probe", 1.0, 1000, 1, "step-1"]]))
    courier.put(loss(2))
    courier.wait_until_written()
    left = courier.flush(SECONDS)
    assert [parcel.entry.number for parcel in left] == [1]
    assert losses(run_id) == [(1, 0.5), (2, 1.0)]


def test_what_was_refused_is_tried_again_when_all_is_settled(courier, run_id):
    early = courier.put(loss(1, "step-1"))
    assert len(courier.flush(SECONDS)) == 1
    put_model(courier, "step-1").result(SECONDS)
    assert courier.flush(SECONDS) == []
    assert early.result(0) == ""
    assert losses(run_id) == [(1, 0.5)]


def test_what_was_refused_is_tried_again_after_a_while(courier, run_id, monkeypatch):
    monkeypatch.setattr(courier_module, "REFUSED_SECONDS", 0.2)
    monkeypatch.setattr(courier_module, "PAUSE_SECONDS", 0.0)
    early = courier.put(loss(1, "step-1"))
    put_model(courier, "step-1").result(SECONDS)
    assert early.result(SECONDS) == ""


def test_nobody_waits_for_what_is_refused(courier):
    courier.put(Tags({"": "no name"}))
    start = time.monotonic()
    assert len(courier.flush(40)) == 1
    assert time.monotonic() - start < 20


def test_a_slow_server_is_not_given_up_while_it_takes_something(courier, run_id, monkeypatch):
    def slowly(*args):
        time.sleep(0.5)
        return deliver(*args)

    monkeypatch.setattr(courier_module, "deliver", slowly)
    for number in range(6):
        courier.put(Tags({f"tag-{number}": "1"}))
    assert courier.flush(2) == []
    assert len([name for name in data(run_id).tags if name.startswith("tag-")]) == 6


def test_closing_gives_a_slow_server_no_more_time_than_it_says(courier, monkeypatch):
    monkeypatch.setattr(courier_module, "deliver", lambda *_: time.sleep(0.5))
    for number in range(6):
        courier.put(Tags({f"tag-{number}": "1"}))
    started = time.monotonic()
    assert courier.close(1)
    assert time.monotonic() - started < 2.5


def test_files_that_cannot_be_kept_fail_and_are_told_once(courier, run_id, caplog):
    answers = [courier.put(Files(), fail) for _ in range(2)]
    courier.put(Tags({"a": "b"}))
    assert courier.flush(SECONDS) == []
    for answer in answers:
        with pytest.raises(SpoolError, match="no room"):
            answer.result(0)
    assert caplog.text.count("cannot write the files") == 1
    assert data(run_id).tags["a"] == "b"


def test_small_things_arrive_without_a_disk(courier, run_id, caplog):
    shutil.rmtree(courier.spool.folder)
    courier.put(Tags({"a": "b"}))
    courier.put(Tags({"c": "d"}))
    assert courier.flush(SECONDS) == []
    assert data(run_id).tags["c"] == "d"
    assert caplog.text.count("would be lost with the process") == 1


def test_what_was_in_memory_only_is_left_where_nobody_answers(courier_without_server):
    courier = courier_without_server
    shutil.rmtree(courier.spool.folder)
    courier.put(Tags({"a": "b"}))
    courier.wait_until_written()
    (parcel,) = courier.flush(0.2)
    assert parcel.entry.payload == {"a": "b"}
    assert parcel.entry.unwritten


def test_a_sign_of_life_comes_while_nothing_is_told(courier, run_id, monkeypatch):
    monkeypatch.setattr(courier_module, "HEARTBEAT_SECONDS", 0.0)
    wait_for(lambda: tag.HEARTBEAT in data(run_id).tags)


def test_closing_ends_both_threads(spool, run_id):
    before = set(threads())
    courier = Courier(spool, RunClient(run_id, "0"), "cats")
    started = set(threads()) - before
    courier.put(Tags({"a": "b"}))
    courier.close(SECONDS)
    assert len(started) == 2
    for thread in started:
        thread.join(SECONDS)
        assert not thread.is_alive()


def test_a_state_whose_tensors_are_damaged_on_the_disk_is_delivered_as_it_is(spool, run_id):
    spool.add("state", {"step": 1}, state(1))
    save_file({}, spool.folder / "000000000" / TENSORS_FILE)
    assert Courier(spool, RunClient(run_id, "0"), "cats").close(SECONDS) == []
