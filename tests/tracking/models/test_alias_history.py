"""The history of an alias, and what fails in between."""

import mlflow
import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from recorded import champion, history

from hpt_mlflow.errors import HptError
from hpt_mlflow.tracking.models import promotion
from hpt_mlflow.tracking.models.alias_history import Move, champion_stack
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


def test_tags_that_are_no_record_are_left_out(models):
    promote(models[0])
    for number, text in enumerate(("{", "3", "[1]", "{}")):
        time = f"2030-01-01T00:00:00.00000{number}Z"
        MlflowClient().set_registered_model_tag("hpt", f"hpt.promotion.champion.{time}", text)
    MlflowClient().set_registered_model_tag("hpt", "hpt.promotion.champion.tomorrow", '{"version": "3"}')
    assert [move.version for move in history()] == ["1"]


def test_a_champion_that_changes_during_the_comparison_is_not_replaced(models, monkeypatch):
    promote(models[0])
    compare = promotion.compare_evaluations

    def compare_while_another_is_promoted(a, b):
        MlflowClient().set_registered_model_alias("hpt", "champion", "2")
        return compare(a, b)

    monkeypatch.setattr(promotion, "compare_evaluations", compare_while_another_is_promoted)
    with pytest.raises(HptError, match="models:/hpt/2 became champion during the comparison"):
        promote(models[2])
    assert champion() == "2"


def test_a_move_that_cannot_be_recorded_is_not_made(models, monkeypatch):
    def refuse(*_):
        raise MlflowException("the disk is full")

    promote(models[0])
    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, "set_registered_model_tag", refuse)
        with pytest.raises(HptError, match="cannot promote models:/hpt/2: the disk is full"):
            promote(models[1])
    assert champion() == "1"


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


def test_a_server_that_does_not_answer_is_one_line(models, monkeypatch, unused_port):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    mlflow.set_tracking_uri(f"http://127.0.0.1:{unused_port}")
    try:
        for action in (lambda: promote(models[0]), lambda: roll_back("hpt")):
            with pytest.raises(HptError, match="nobody answers"):
                action()
    finally:
        mlflow.set_tracking_uri(None)
