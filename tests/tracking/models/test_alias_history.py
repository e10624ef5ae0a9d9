"""The history of an alias, moves at the same time, and what fails in between."""

import subprocess
import sys
from datetime import datetime, timedelta, timezone

import mlflow
import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from recorded import champion, history, tags

from hpt_mlflow.errors import HptError
from hpt_mlflow.tracking.models import alias_history, apply_promotion
from hpt_mlflow.tracking.models.alias_history import TIME_FORMAT, Move, champion_stack
from hpt_mlflow.tracking.models.promotion import promote, roll_back


@pytest.mark.parametrize(
    ("history", "now", "expected"),
    [
        ([], "", []),
        ([], "3", ["3"]),
        ([Move("1", "2", "1"), Move("2", "3", "2")], "3", ["1", "2", "3"]),
        ([Move("1", "2", "1"), Move("2", "3", "2"), Move("3", "2", "3", back=True)], "2", ["1", "2"]),
        ([Move("1", "2", "1"), Move("2", "1", "2", back=True), Move("3", "3", "1")], "3", ["1", "3"]),
        # Set by hand to 9 in between, and at the end.
        ([Move("1", "2"), Move("2", "3", "9")], "3", ["2", "9", "3"]),
        ([Move("1", "2")], "9", ["2", "9"]),
    ],
)
def test_going_back_takes_off_what_lies_above(history, now, expected):
    assert champion_stack(history, now) == expected


def test_a_clock_that_is_behind_does_not_undo_a_promotion(models):
    promote(models[0])
    ahead = (datetime.now(timezone.utc) + timedelta(hours=1)).strftime(TIME_FORMAT)
    MlflowClient().set_registered_model_tag("hpt", f"hpt.promotion.champion.{ahead}", '{"version": "1"}')
    promote(models[1])
    assert champion() == "2"
    assert history()[-1].version == "2"


def test_tags_that_are_no_record_are_left_out(models):
    promote(models[0])
    for number, text in enumerate(("{", "3", "[1]", "{}")):
        time = f"2030-01-01T00:00:00.00000{number}Z"
        MlflowClient().set_registered_model_tag("hpt", f"hpt.promotion.champion.{time}", text)
    MlflowClient().set_registered_model_tag("hpt", "hpt.promotion.champion.tomorrow", '{"version": "3"}')
    assert [move.version for move in history()] == ["1"]


def promote_between(monkeypatch, model, later):
    """Let somebody else promote a model just before, or just after, this process sets its alias."""
    original = MlflowClient.set_registered_model_alias
    others = []

    def set_alias(client, name, alias, version):
        if name == "hpt" and not others:
            others.append(model)
            if later:
                original(client, name, alias, version)
            promote(model, force=True, reason="at once")
            if later:
                return
        original(client, name, alias, version)

    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", set_alias)


@pytest.mark.parametrize("later", [False, True])
def test_who_is_overtaken_is_told_and_both_are_recorded(models, monkeypatch, later):
    promote(models[0])
    promote_between(monkeypatch, models[2], later)
    with pytest.raises(HptError, match="models:/hpt/2 was promoted, but models:/hpt/3 was at the same time"):
        promote(models[1])
    assert [move.version for move in history()] == ["1", "2", "3"]
    assert (champion(), champion("hpt-classifier")) == ("3", "3")
    assert tags(2)["hpt.replaced_by"] == models[2]
    assert "hpt.replaced" not in tags(3)


def test_a_promotion_while_comparing_is_compared_with(models, monkeypatch):
    from hpt_mlflow.tracking.models import promotion

    promote(models[0])
    original = promotion.compare_evaluations
    others = []

    def compare(a, b):
        if not others:
            others.append(models[1])
            promote(models[1])
        return original(a, b)

    monkeypatch.setattr(promotion, "compare_evaluations", compare)
    with pytest.raises(HptError, match="models:/hpt/3 is worse than the champion models:/hpt/2"):
        promote(models[2])
    assert champion() == "2"


@pytest.mark.slow
def test_two_processes_that_promote_at_once_leave_one_champion_and_both_records(models, tmp_path):
    code = "import sys; from hpt_mlflow.cli import hpt; sys.argv[0] = 'hpt'; hpt()"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, "promote", model, "--margin", "1"], stderr=subprocess.PIPE, text=True
        )
        for model in models[:2]
    ]
    outputs = [process.communicate(timeout=120)[1] for process in processes]
    assert not any("Traceback" in output for output in outputs), outputs
    assert {process.returncode for process in processes} <= {0, 1}
    assert sorted(move.version for move in history()) == ["1", "2"]
    assert champion() == history()[-1].version
    assert champion("hpt-classifier") == champion()


def test_an_alias_that_cannot_be_set_leaves_no_record(models, monkeypatch):
    def refuse(*_):
        raise MlflowException("the disk is full")

    promote(models[0])
    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, "set_registered_model_alias", refuse)
        with pytest.raises(HptError, match="cannot promote models:/hpt/2: the disk is full"):
            promote(models[1])
    assert champion() == "1"
    assert [move.version for move in history()] == ["1"]


def test_an_alias_that_others_keep_moving_is_told(models, monkeypatch):
    monkeypatch.setattr(alias_history, "alias_version", lambda model, alias: "somewhere else")
    with pytest.raises(HptError, match="others keep moving 'champion' of hpt"):
        alias_history.move_alias("hpt", "champion", Move("2026-01-01T00:00:00.000000Z", "1"))


def test_tags_that_cannot_be_set_become_a_note(models, monkeypatch):
    def refuse(*_):
        raise MlflowException("the disk is full")

    monkeypatch.setattr(apply_promotion.MlflowClient, "set_model_version_tag", refuse)
    assert "the alias has moved, but not all tags could be set (the disk is full)" in promote(models[0]).notes
    assert champion() == "1"


def test_a_server_that_does_not_answer_is_one_line(models, monkeypatch, unused_port):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    mlflow.set_tracking_uri(f"http://127.0.0.1:{unused_port}")
    try:
        for action in (lambda: promote(models[0]), lambda: roll_back("hpt")):
            with pytest.raises(HptError, match="nobody answers"):
                action()
    finally:
        mlflow.set_tracking_uri(None)
