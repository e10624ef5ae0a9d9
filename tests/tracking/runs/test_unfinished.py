import socket
import time

import mlflow
import pytest
import torch
from mlflow.tracking import MlflowClient

from hpt_mlflow.errors import HptError
from hpt_mlflow.tracking import tags as tag
from hpt_mlflow.tracking.identity import Identity
from hpt_mlflow.tracking.runs.liveness import STALE_SECONDS
from hpt_mlflow.tracking.runs.stage_run import stage_run
from hpt_mlflow.tracking.runs.unfinished import unfinished_runs
from hpt_mlflow.training.state import TrainingState

WORK = Identity({"stage": "pretrain", "steps": 8}, "hpt pretrain --data 'my cats' --steps 8")
HERE = socket.gethostname()
ELSEWHERE = "another-machine"


def make_run(status, host=ELSEWHERE, ago=0.0, second=0, experiment="0", tags=WORK.tags):
    client = MlflowClient()
    signs = {tag.HOST: host, tag.HEARTBEAT: str(time.time() - ago)}
    run = client.create_run(experiment, 1_000 * second, tags | signs, f"pretrain {second}")
    client.update_run(run.info.run_id, status=status)
    return run.info.run_id


def interrupted(*states):
    def stage():
        with stage_run("pretrain cats", WORK) as run:
            run.params({"steps": 8})
            for step in states:
                state = TrainingState(step, {"report/gathered": torch.empty(0, 3)}, {}, {})
                run.state(step, state.write)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stage()


def test_nothing_is_unfinished_in_an_empty_store(store):
    assert unfinished_runs() == []


def test_runs_that_are_finished_and_runs_of_others_are_left_out(store):
    make_run("FINISHED")
    make_run("KILLED", tags={})
    # An evaluation says what work it is, but cannot be continued.
    make_run("FAILED", tags={tag.FINGERPRINT: WORK.fingerprint})
    with stage_run("evaluate cats"):
        assert unfinished_runs() == []


@pytest.mark.parametrize(("states", "saved"), [((), "none"), ((3,), "step 3 of 8"), ((3, 6, 7), "step 7 of 8")])
def test_an_interrupted_run_says_what_it_kept_and_how_it_goes_on(store, states, saved):
    interrupted(*states)
    (run,) = unfinished_runs()
    assert (run.name, run.state, run.saved) == ("pretrain cats", "interrupted", saved)
    assert run.command == "hpt pretrain --data 'my cats' --steps 8"
    assert run.last_seen.endswith(" s ago")


def test_each_run_is_called_by_its_true_state_newest_first(store):
    make_run("KILLED", second=1)
    make_run("FAILED", second=2)
    make_run("RUNNING", host=HERE, ago=STALE_SECONDS + 1, second=3)
    make_run("RUNNING", ago=STALE_SECONDS + 1, second=4)
    make_run("RUNNING", second=5)
    another = mlflow.create_experiment("another")
    make_run("KILLED", second=6, experiment=another)
    assert [(run.name, run.state, bool(run.command)) for run in unfinished_runs()] == [
        ("pretrain 6", "interrupted", True),
        ("pretrain 5", f"running on {ELSEWHERE}", False),
        ("pretrain 4", f"died on {ELSEWHERE}", True),
        ("pretrain 3", f"died on {HERE}", True),
        ("pretrain 2", "failed", True),
        ("pretrain 1", "interrupted", True),
    ]


def test_a_run_of_this_process_is_at_work(store):
    with stage_run("pretrain cats", WORK):
        (run,) = unfinished_runs()
    assert run.state == f"running on {HERE}"
    assert run.command == ""


def test_the_last_seen_of_life_has_a_unit_that_suits_it(store):
    for i, ago in enumerate((5, 90, 2 * 3_600 + 60, 3 * 86_400 + 60)):
        make_run("KILLED", ago=ago, second=i + 1)
    said = [run.last_seen for run in unfinished_runs()]
    assert said[:2] == ["3 d ago", "2 h ago"]
    assert said[2].endswith(" min ago")
    assert said[3].endswith(" s ago")


def test_a_server_that_is_not_there_is_an_error_in_one_line(lose_server):
    lose_server()
    with pytest.raises(HptError, match="cannot list the runs: nobody answers") as caught:
        unfinished_runs()
    assert "\n" not in str(caught.value)
