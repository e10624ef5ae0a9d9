from datetime import datetime

import pytest
from mlflow.tracking import MlflowClient
from recorded import champion, evaluation, history, stage, tags

from hpt_mlflow.errors import HptError
from hpt_mlflow.tracking.models.alias_history import TIME_FORMAT
from hpt_mlflow.tracking.models.promotion import promote, roll_back


def test_the_first_champion_needs_an_evaluation_and_nothing_else(models):
    done = promote(models[0])
    assert (champion(), champion("hpt-classifier")) == ("1", "1")
    assert (done.before, done.comparison, done.classifier) == ("", None, "models:/hpt-classifier/1")


def test_a_version_that_nobody_evaluated_is_refused_with_the_command(models, tmp_path):
    promote(models[0])
    unknown = stage(tmp_path, "pretrain", "fish")
    with pytest.raises(
        HptError, match="no finished evaluation.*hpt evaluate --model models:/hpt/4 --data builtin:mnist"
    ):
        promote(unknown)
    assert champion() == "1"


def test_a_better_version_replaces_the_champion_and_says_why(models):
    promote(models[0])
    done = promote(models[1])
    assert champion() == "2"
    assert done.comparison.primary.difference.value == pytest.approx(0.1)
    winner, loser = tags(2), tags(1)
    assert (winner["hpt.metric"], winner["hpt.value"], winner["hpt.interval"]) == (
        "test/accuracy",
        "0.7",
        "0.670 to 0.730",
    )
    assert (winner["hpt.test_digest"], winner["hpt.test_dataset_digest"]) == ("0123456789abcdef", "d-mnist")
    assert (winner["hpt.dataset_digest"], winner["hpt.lineage"]) == ("d-dogs", "models:/hpt/2")
    assert datetime.strptime(winner["hpt.promoted"], TIME_FORMAT)
    assert "@" in winner["hpt.promoted_by"]
    assert loser["hpt.value"] == "0.6"
    assert "hpt.forced" not in winner
    assert champion("hpt-classifier") == "2"
    assert tags(2, "hpt-classifier")["hpt.promoted"] == winner["hpt.promoted"] == history()[-1].time


def test_a_worse_version_is_refused_and_nothing_changes(models):
    promote(models[1])
    before = (history(), tags(2), tags(3))
    with pytest.raises(HptError) as caught:
        promote(models[2])
    for word in ("models:/hpt/3 is worse", "models:/hpt/2", "0.6500 against 0.7000", "margin of 0", "--force"):
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (history(), tags(2), tags(3)) == before
    assert (champion(), champion("hpt-classifier")) == ("2", "2")


@pytest.mark.parametrize(("margin", "expected"), [(0.04, "2"), (0.05, "3"), (0.1, "3")])
def test_a_margin_allows_so_much_and_no_more(models, margin, expected):
    promote(models[1])
    if expected == "2":
        with pytest.raises(HptError, match="margin of 0.04"):
            promote(models[2], margin=margin)
    else:
        promote(models[2], margin=margin)
    assert champion() == expected


@pytest.mark.parametrize("different", [{"test": "f" * 16}, {"protocol": "paper"}])
def test_a_version_that_was_judged_otherwise_is_refused(models, tmp_path, different):
    promote(models[0])
    other = stage(tmp_path, "pretrain", "fish")
    evaluation(tmp_path, other, 0.99, **different)
    with pytest.raises(HptError) as caught:
        promote(other)
    for word in (models[0], other, "not evaluated on the same test images", "hpt evaluate --model models:/hpt/1"):
        assert word in str(caught.value)
    assert champion() == "1"


def test_the_test_that_made_the_champion_decides_and_not_another_that_suits_the_candidate(models, tmp_path):
    promote(models[1])
    evaluation(tmp_path, models[1], 0.5, test="f" * 16)
    evaluation(tmp_path, models[2], 0.9, test="f" * 16)
    with pytest.raises(HptError, match="is worse"):
        promote(models[2])


def test_forcing_records_who_and_why_and_what_spoke_against_it(models, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ada")
    promote(models[1])
    promote(models[2], force=True, reason="the other one is too slow")
    assert champion() == "3"
    said = tags(3)["hpt.forced"]
    for word in ("ada@", "the other one is too slow", "is worse", "2"):
        assert word in said
    newest = history()[-1]
    assert newest.by.startswith("ada@")
    assert (newest.reason, newest.difference) == ("the other one is too slow", pytest.approx(-0.05))


def test_forcing_goes_without_any_evaluation(models, tmp_path):
    promote(models[1])
    promote(stage(tmp_path, "pretrain", "fish"), force=True, reason="new data")
    assert champion() == "4"


@pytest.mark.parametrize("said", [{"force": True}, {"reason": "because"}, {"force": True, "reason": " "}])
def test_forcing_and_a_reason_go_together(models, said):
    with pytest.raises(HptError, match="--force and --reason"):
        promote(models[0], **said)


@pytest.mark.parametrize("margin", [-0.1, float("nan")])
def test_a_margin_below_zero_is_refused(models, margin):
    with pytest.raises(HptError, match="margin"):
        promote(models[0], margin=margin)


def test_what_is_no_version_is_refused(models):
    milestone = MlflowClient().get_model_version("hpt", "1").source
    with pytest.raises(HptError, match="not a registered version"):
        promote(milestone)


def test_promoting_the_champion_again_changes_nothing(models):
    promote(models[0])
    before = history()
    assert promote("champion").notes == ["models:/hpt/1 is champion already"]
    assert history() == before


def test_other_aliases_have_a_history_of_their_own(models):
    promote(models[1])
    promote(models[0], alias="challenger")
    assert (champion(), champion(alias="challenger")) == ("2", "1")
    assert [len(history(alias=alias)) for alias in ("champion", "challenger")] == [1, 1]


def test_a_deleted_champion_is_no_hindrance(models):
    promote(models[1])
    MlflowClient().delete_model_version("hpt", "2")
    promote(models[0])
    assert champion() == "1"


def test_a_classifier_is_promoted_by_the_evaluation_that_it_came_from(models):
    promote("models:/hpt-classifier/1")
    promote("models:/hpt-classifier/2")
    assert (champion("hpt-classifier"), champion()) == ("2", "")
    with pytest.raises(HptError, match="models:/hpt-classifier/3 is worse"):
        promote("models:/hpt-classifier/3")


def test_a_classifier_that_stays_behind_is_told(models, tmp_path):
    promote(models[0])
    other = stage(tmp_path, "pretrain", "fish")
    evaluation(tmp_path, other, 0.9)
    assert promote(other).notes == ["no classifier moved: the champion of hpt-classifier stays version 1"]


def test_back_twice_goes_further_back_and_then_no_further(models):
    promote(models[0])
    promote(models[1])
    promote(models[2], force=True, reason="a test")
    assert (roll_back("hpt").address, champion(), champion("hpt-classifier")) == (models[1], "2", "2")
    assert (roll_back("hpt").address, champion(), champion("hpt-classifier")) == (models[0], "1", "1")
    with pytest.raises(HptError, match="hpt has no champion before models:/hpt/1"):
        roll_back("hpt")
    assert [(move.version, move.back) for move in history()] == [
        ("1", False),
        ("2", False),
        ("3", False),
        ("2", True),
        ("1", True),
    ]


def test_back_passes_over_deleted_versions_and_says_so(models):
    promote(models[0])
    promote(models[1])
    promote(models[2], force=True, reason="a test")
    MlflowClient().delete_model_version("hpt", "2")
    done = roll_back("hpt")
    assert done.address == models[0]
    assert done.notes == ["models:/hpt/2 was champion before, but is deleted"]


def test_a_copy_is_promoted_where_it_was_copied_to_with_its_classifier(models):
    promote(models[0])
    done = promote(models[1], to="production", standalone=False)
    assert (done.address, champion("production"), champion()) == ("models:/production/1", "1", "1")
    assert MlflowClient().get_model_version("production", "1").source == models[1]
    assert MlflowClient().get_model_version("production-classifier", "1").source == "models:/hpt-classifier/2"
    assert champion("production-classifier") == "1"
    travelled = tags(1, "production")
    assert (travelled["hpt.chain"], travelled["hpt.value"], travelled["hpt.test_digest"]) == (
        "dogs",
        "0.7",
        "0123456789abcdef",
    )
    assert travelled["hpt.lineage"] == "models:/hpt/2 > models:/production/1"
    with pytest.raises(HptError, match="models:/hpt/3 is worse than the champion models:/production/1"):
        promote(models[2], to="production", standalone=False)
    assert len(MlflowClient().search_model_versions("name='production'")) == 1


def test_a_version_is_copied_once(models):
    promote(models[0], to="production", standalone=False)
    promote(models[1], to="production", standalone=False)
    promote(models[0], to="production", standalone=False, force=True, reason="a test")
    assert len(MlflowClient().search_model_versions("name='production'")) == 2
    assert promote(models[0], to="production", standalone=False).notes == ["models:/production/1 is champion already"]
