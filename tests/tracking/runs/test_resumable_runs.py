import logging
import socket
import subprocess
import sys
import threading
import time

import mlflow
import pytest
import torch
from mlflow.tracking import MlflowClient

from hpt_mlflow.errors import HptError
from hpt_mlflow.models.architecture import Architecture
from hpt_mlflow.models.backbone import build_backbone
from hpt_mlflow.models.checkpoint import BackboneCard
from hpt_mlflow.stages.result import result_of
from hpt_mlflow.tracking import tags as tag
from hpt_mlflow.tracking.delivery.spool import Owner, Spool, SpoolBusyError, is_at_work, spool_folder
from hpt_mlflow.tracking.identity import Identity
from hpt_mlflow.tracking.models.store import log_backbone
from hpt_mlflow.tracking.runs import liveness
from hpt_mlflow.tracking.runs.resume import earlier_run, owner_here
from hpt_mlflow.tracking.runs.stage_run import stage_run

WORK = Identity({"stage": "pretrain", "steps": 8, "seed": 0}, "hpt pretrain --steps 8")
OTHER_WORK = Identity({"stage": "pretrain", "steps": 9, "seed": 0}, "hpt pretrain --steps 9")
ELSEWHERE = "another-machine"
SECONDS = 20


@pytest.fixture(autouse=True)
def always_a_store(store):
    pass


def make_run(status="KILLED", work=WORK, host=None, heartbeat=0.0, parent=None, second=0):
    """A run as a process that is gone has left it, started at a second of its own."""
    tags = work.tags | {tag.HOST: host or socket.gethostname(), tag.HEARTBEAT: str(heartbeat)}
    nesting = {"mlflow.parentRunId": parent} if parent else {}
    client = MlflowClient()
    run = client.create_run("0", 1_000 * second, tags | nesting, "pretrain cats")
    client.update_run(run.info.run_id, status=status)
    return run.info.run_id


def found(work=WORK, resume="auto", parent=None):
    with earlier_run(work, resume, parent) as run:
        return run and run.run.info.run_id


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def refusal(resume, work=WORK):
    with pytest.raises(HptError) as caught, earlier_run(work, resume, None):
        pass
    assert "\n" not in str(caught.value)
    return str(caught.value)


def dead_pid():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait(SECONDS)
    return process.pid


def left_behind(run_id):
    """The spool of a run whose process is gone."""
    here = owner_here(mlflow.get_run(run_id))
    return Spool.open(spool_folder(run_id), Owner(**(vars(here) | {"pid": dead_pid()})))


@pytest.mark.parametrize("resume", ["auto", "never"])
def test_where_there_is_no_run_there_is_no_earlier_one(resume):
    assert found(resume=resume) is None


@pytest.mark.parametrize("status", ["KILLED", "FAILED", "RUNNING", "SCHEDULED"])
def test_a_run_that_nobody_works_on_is_found(status):
    assert found() is None
    run_id = make_run(status)
    assert found() == run_id
    assert found(resume=run_id) == run_id


def test_a_run_that_is_deleted_or_of_other_work_or_of_another_experiment_is_not_found(monkeypatch):
    make_run(work=OTHER_WORK)
    MlflowClient().delete_run(make_run())
    assert found() is None
    make_run()
    assert found(resume="never") is None
    mlflow.create_experiment("another")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "another")
    assert found() is None


def test_the_newest_of_several_is_found():
    make_run(second=1)
    newest = make_run("FAILED", second=3)
    make_run(second=2)
    assert found() == newest


def test_an_unfinished_run_is_not_taken_up_after_a_later_one_was_finished():
    make_run(second=1)
    make_run("FINISHED", second=2)
    assert found() is None


def test_an_unfinished_run_is_taken_up_though_an_earlier_one_was_finished():
    make_run("FINISHED", second=1)
    newest = make_run(second=2)
    assert found() == newest


def test_the_run_is_ours_alone_for_the_block():
    run_id = make_run()
    with earlier_run(WORK, "auto", None) as run:
        assert not run.finished
        assert run.spool.folder == spool_folder(run_id)
        assert is_at_work(spool_folder(run_id))
        with pytest.raises(SpoolBusyError):
            Spool.open(spool_folder(run_id), wait_seconds=0)
    assert not spool_folder(run_id).exists()


def test_the_run_is_given_back_after_an_exception():
    run_id = make_run()
    with pytest.raises(RuntimeError, match="broken"), earlier_run(WORK, "auto", None):
        raise RuntimeError("broken")
    assert found() == run_id


def test_a_run_that_is_being_taken_up_is_left_alone(caplog):
    run_id = make_run()
    with earlier_run(WORK, "auto", None):
        assert found() is None
        assert "another process works on it" in refusal(run_id)
    (warning,) = warnings(caplog)
    assert run_id in warning


def test_a_run_at_work_on_this_machine_is_left_alone(caplog):
    older = make_run(second=1)
    with stage_run("pretrain cats", WORK) as run:
        assert found() == older
        assert "is still running on" in refusal(run.run_id)
    assert run.run_id in warnings(caplog)[0]
    assert found() is None


def test_a_stale_run_of_another_machine_is_taken():
    run_id = make_run("RUNNING", host=ELSEWHERE, heartbeat=time.time() - liveness.STALE_SECONDS - 1)
    assert found() == run_id


def test_a_run_of_another_machine_that_ended_is_taken_at_once():
    run_id = make_run("KILLED", host=ELSEWHERE, heartbeat=time.time())
    assert found() == run_id


class Clock:
    """A clock that only moves while somebody sleeps."""

    def __init__(self):
        self.now = self.start = time.time()

    def time(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


def test_a_run_of_another_machine_is_taken_when_its_heart_stops(monkeypatch, caplog):
    clock = Clock()
    monkeypatch.setattr(liveness, "time", clock)
    run_id = make_run("RUNNING", host=ELSEWHERE, heartbeat=clock.start)
    assert found() == run_id
    assert 0 <= clock.now - clock.start - liveness.STALE_SECONDS <= 5
    assert [ELSEWHERE in warning for warning in warnings(caplog)] == [True]


def watched(change, monkeypatch):
    """What is found while a change comes to a run of another machine that has just given a sign of life."""
    run_id = make_run("RUNNING", host=ELSEWHERE, heartbeat=time.time())
    monkeypatch.setattr(liveness, "STALE_SECONDS", SECONDS)
    looked_again = threading.Event()

    def wait(seconds):
        if not looked_again.is_set():
            change(run_id)
        looked_again.set()

    monkeypatch.setattr(liveness.time, "sleep", wait)
    got = found()
    assert looked_again.is_set()
    return run_id, got


def test_a_run_of_another_machine_whose_heart_beats_is_left_alone(monkeypatch, caplog):
    run_id, got = watched(lambda run_id: MlflowClient().set_tag(run_id, tag.HEARTBEAT, time.time() + 30), monkeypatch)
    assert got is None
    assert f"the run {run_id}" in warnings(caplog)[-1]
    assert "starting another one" in warnings(caplog)[-1]


def test_a_run_of_another_machine_that_is_ended_while_we_watch_is_taken(monkeypatch):
    run_id, got = watched(lambda run_id: MlflowClient().set_terminated(run_id, "KILLED"), monkeypatch)
    assert got == run_id


def test_a_run_of_another_machine_at_work_cannot_be_named(monkeypatch):
    run_id = make_run("RUNNING", host=ELSEWHERE, heartbeat=time.time())
    monkeypatch.setattr(liveness, "STALE_SECONDS", SECONDS)
    monkeypatch.setattr(
        liveness.time, "sleep", lambda seconds: MlflowClient().set_tag(run_id, tag.HEARTBEAT, time.time() + 30)
    )
    assert refusal(run_id) == f"resume: {run_id} is still running on {ELSEWHERE}"


@pytest.mark.parametrize("resume", ["0" * 32, "newest", "../..", ""])
def test_a_run_that_is_not_there_cannot_be_named(resume):
    assert f"there is no run {resume!r}" in refusal(resume)


def test_a_run_of_other_work_cannot_be_named():
    message = refusal(make_run(work=OTHER_WORK))
    assert "steps 8 instead of 9" in message
    assert "seed" not in message
    message = refusal(make_run(work=Identity({"stage": "adapt", "steps": 8, "parent": "models:/hpt/1"}, "hpt adapt")))
    assert "stage 'pretrain' instead of 'adapt'" in message
    assert "seed 0 instead of None" in message


def test_a_run_of_an_evaluation_cannot_be_named():
    with stage_run("evaluate cats") as run:
        pass
    assert "is not the run of a stage that can be resumed (pretrain, adapt, main, study)" in refusal(run.run_id)


def test_a_finished_run_cannot_be_named():
    run_id = make_run("FINISHED")
    MlflowClient().set_tag(run_id, "hpt.model", "models:/hpt/7")
    assert refusal(run_id) == f"resume: {run_id} is finished; its model is models:/hpt/7"


def test_a_named_run_is_taken_though_a_newer_one_is_there():
    older = make_run(second=1)
    make_run(second=2)
    make_run("FINISHED", second=3)
    assert found(resume=older) == older


@pytest.mark.parametrize("parent", [None, "a" * 32, "b" * 32])
def test_runs_under_other_parents_are_told_apart(parent):
    runs = {parent: make_run(parent=parent) for parent in (None, "a" * 32)}
    assert found(parent=parent) == runs.get(parent)


def test_inside_a_parent_a_finished_run_is_used_again():
    run_id = make_run("FINISHED", parent="a" * 32, second=2)
    make_run("KILLED", parent="a" * 32, second=1)
    with earlier_run(WORK, "auto", "a" * 32) as run:
        assert run.finished
        assert run.run.info.run_id == run_id
    assert found(resume="never", parent="a" * 32) is None


def test_what_an_earlier_process_could_not_tell_is_told_before_the_run_goes_on():
    run_id = make_run()
    spool = left_behind(run_id)
    spool.add("metrics", {"metrics": [["train/loss", 3.5, 1000, 7, None]]})
    spool.add("tags", {"hpt.chain": "cats"})
    spool.close()
    with earlier_run(WORK, "auto", None) as run:
        assert run.run.data.metrics == {"train/loss": 3.5}
        assert run.run.data.tags["hpt.chain"] == "cats"
        assert run.spool.entries() == []


def test_an_end_that_an_earlier_process_could_not_tell_does_not_end_the_run_that_goes_on():
    run_id = make_run("RUNNING")
    spool = left_behind(run_id)
    spool.add("end", {"status": "KILLED", "end_time": 5_000})
    spool.close()
    with earlier_run(WORK, "auto", None) as run, stage_run("pretrain cats", WORK, run):
        assert mlflow.get_run(run_id).info.status == "RUNNING"
    assert mlflow.get_run(run_id).info.status == "FINISHED"


def test_what_mlflow_refuses_keeps_a_run_from_going_on(tmp_path):
    run_id = make_run()
    spool = left_behind(run_id)
    spool.add("tags", {"": "no name"})
    spool.close()
    for setting in ("auto", run_id):
        message = refusal(setting)
        assert f"the run {run_id} cannot be resumed" in message
        assert "resume=never" in message
    assert not is_at_work_by_lock(run_id)
    assert found(resume="never") is None


def is_at_work_by_lock(run_id):
    try:
        Spool.open(spool_folder(run_id), wait_seconds=0).close()
    except SpoolBusyError:
        return True
    return False


@pytest.mark.parametrize("by_name", [False, True])
def test_a_run_that_was_done_and_not_delivered_is_delivered_and_gives_its_result(by_name):
    torch.manual_seed(0)
    backbone, feature_size = build_backbone(Architecture("shufflenet_v2_x0_5", 16))
    card = BackboneCard(
        Architecture("shufflenet_v2_x0_5", 16), feature_size, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), ("cats",), 8
    )
    with stage_run("pretrain cats", WORK) as run:
        run.tags({"hpt.chain": "cats"})
        run.metrics({"train/loss": 1.5}, 8)
        log_backbone(run, backbone, card, {}).result(SECONDS)
    MlflowClient().update_run(run.run_id, status="RUNNING")
    spool = left_behind(run.run_id)
    version = {"model": "step-8", "model_name": "hpt", "tags": {}, "alias": "base", "description": "done"}
    spool.add("version", version)
    spool.add("end", {"status": "FINISHED", "end_time": 5_000})
    spool.close()

    with earlier_run(WORK, run.run_id if by_name else "auto", None) as done:
        assert done.finished
        result = result_of(done)
    assert (result.run_id, result.model_uri, result.chain) == (run.run_id, "models:/hpt/1", ("cats",))
    assert result.metrics == {"train/loss": 1.5}
    assert mlflow.get_run(run.run_id).info.status == "FINISHED"
    assert MlflowClient().get_model_version_by_alias("hpt", "base").run_id == run.run_id
    assert not spool_folder(run.run_id).exists()


def test_a_server_that_is_not_there_is_an_error_in_one_line(lose_server):
    lose_server()
    assert "cannot look for earlier runs: nobody answers" in refusal("auto")


def test_a_process_number_that_came_again_is_not_at_work():
    run_id = make_run(status="RUNNING")
    spool = Spool.open(spool_folder(run_id), owner_here(MlflowClient().get_run(run_id)))
    spool.add("tags", {"a": "b"})
    spool.close()
    with earlier_run(WORK, "auto", None) as earlier:
        assert earlier.run.info.run_id == run_id


def test_a_run_of_this_machine_with_its_spool_elsewhere_goes_by_its_heartbeat(tmp_path, monkeypatch):
    with stage_run("pretrain cats", WORK) as run:
        monkeypatch.setattr("hpt_mlflow.tracking.runs.liveness.STALE_SECONDS", 2.0)
        beating = threading.Event()

        def beat():
            while not beating.wait(0.05):
                MlflowClient().set_tag(run.run_id, tag.HEARTBEAT, str(time.time()))

        thread = threading.Thread(target=beat)
        thread.start()
        monkeypatch.setenv("HPT_SPOOL", str(tmp_path / "of-another-user"))
        with earlier_run(WORK, "auto", None) as earlier:
            assert earlier is None
        beating.set()
        thread.join()


@pytest.mark.parametrize(
    ("text", "words"),
    [("broken", "damaged"), ('{"stage": "pretrain", "steps": 8, "seed": 0, "newer": 1}', "newer None")],
)
def test_a_named_run_whose_work_cannot_be_compared_is_refused(text, words):
    run_id = make_run()
    MlflowClient().set_tag(run_id, tag.IDENTITY, text)
    with pytest.raises(HptError, match=words), earlier_run(WORK, run_id, None):
        pass
