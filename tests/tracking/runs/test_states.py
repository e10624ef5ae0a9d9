import logging
from pathlib import Path

import mlflow
import pytest
import torch
from mlflow.utils.file_utils import local_file_uri_to_path

from hpt_mlflow.errors import HptError
from hpt_mlflow.tracking.delivery.entries import deliver
from hpt_mlflow.tracking.delivery.run_client import RunClient
from hpt_mlflow.tracking.delivery.spool import Owner, Spool, spool_folder
from hpt_mlflow.tracking.runs.stage_run import stage_run
from hpt_mlflow.tracking.runs.states import newest_state
from hpt_mlflow.training.state import JSON_FILE, TENSORS_FILE, TrainingState


def state_at(step):
    tensors = {"method/queue": torch.full((4, 3), float(step)), "report/gathered": torch.empty(0, 3)}
    return TrainingState(step, tensors, {}, {step: "no picture"})


def run_with_states(*steps):
    with stage_run("pretrain cats") as run:
        for step in steps:
            run.state(step, state_at(step).write).result(timeout=20)
    return run.run_id


def files_of(run_id, name):
    """By the step of the state that they belong to."""
    folder = Path(local_file_uri_to_path(mlflow.get_run(run_id).info.artifact_uri))
    return {TrainingState.read(file.parent).step: file for file in folder.glob(f"training_state/*/{name}")}


def flip_a_bit(file, place=-1):
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_a_run_without_a_state(store, caplog):
    assert newest_state(run_with_states()) is None
    assert warnings(caplog) == []


@pytest.mark.parametrize("steps", [(5,), (5, 10), (5, 10, 15)])
def test_the_newest_state_comes_back_as_it_was(store, caplog, steps):
    state = newest_state(run_with_states(*steps))
    assert (state.step, state.unreadable) == (steps[-1], {steps[-1]: "no picture"})
    assert torch.equal(state.tensors["method/queue"], torch.full((4, 3), float(steps[-1])))
    assert warnings(caplog) == []


def test_a_damaged_state_falls_back_to_the_one_before_it(store, caplog):
    run_id = run_with_states(5, 10, 15)
    flip_a_bit(files_of(run_id, TENSORS_FILE)[15])
    assert newest_state(run_id).step == 10
    (warning,) = warnings(caplog)
    assert "step 15 is damaged" in warning
    assert "checksum" in warning


def test_a_state_whose_tensors_are_gone_falls_back_to_the_one_before_it(store, caplog):
    run_id = run_with_states(5, 10)
    files_of(run_id, TENSORS_FILE)[10].unlink()
    assert newest_state(run_id).step == 5
    assert "step 10 is damaged" in caplog.text


@pytest.mark.parametrize("text", ["{", '{"format": "hpt_mlflow.training_state/1", "step": 99}'])
def test_a_state_without_a_description_is_none(store, text):
    run_id = run_with_states(5, 10)
    files_of(run_id, JSON_FILE)[10].write_text(text)
    assert newest_state(run_id).step == 5


def test_the_newest_state_is_whole_where_the_older_is_damaged(store, caplog):
    run_id = run_with_states(5, 10)
    flip_a_bit(files_of(run_id, TENSORS_FILE)[5])
    assert newest_state(run_id).step == 10
    assert warnings(caplog) == []


def test_no_state_is_left_where_both_are_damaged(store, caplog):
    run_id = run_with_states(5, 10)
    for file in files_of(run_id, TENSORS_FILE).values():
        flip_a_bit(file)
    assert newest_state(run_id) is None
    assert ["step 10" in warning or "step 5" in warning for warning in warnings(caplog)] == [True, True]


def test_a_server_that_is_not_there_is_an_error_in_one_line(store, lose_server):
    run_id = run_with_states(5)
    lose_server()
    with pytest.raises(HptError, match=f"training states of {run_id}.*nobody answers") as caught:
        newest_state(run_id)
    assert "\n" not in str(caught.value)


def test_a_damaged_state_gives_its_place_to_the_next_one(store):
    run_id = run_with_states(5, 10)
    flip_a_bit(files_of(run_id, TENSORS_FILE)[10])
    assert newest_state(run_id).step == 5
    client = RunClient(run_id, "0")
    spool = Spool.open(spool_folder("next"), Owner("next", "0", "cats", "", "", 0, ""))
    for step in (7, 9):
        entry = spool.add("state", {"step": step}, state_at(step).write)
        deliver(client, [entry])
        assert newest_state(run_id).step == step
    assert sorted(files_of(run_id, JSON_FILE)) == [7, 9]
