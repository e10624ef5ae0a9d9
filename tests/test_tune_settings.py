from __future__ import annotations

import dataclasses

import pytest

from hpt_mlflow.errors import HptError
from hpt_mlflow.evaluation.objectives import OBJECTIVES
from hpt_mlflow.options import choices_of
from hpt_mlflow.settings import AdaptSettings, TuneSettings

# Those of tune alone.
OWN = {field.name: field for field in dataclasses.fields(TuneSettings)}


def refusal(name, value):
    with pytest.raises(HptError, match=f"^{name}: ") as caught:
        TuneSettings(**{name: value})
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_objectives_are_those_that_there_are_and_auto():
    assert choices_of(OWN["objective"]) == ("auto", *OBJECTIVES)


def test_the_defaults():
    chosen = TuneSettings()
    assert (chosen.objective, chosen.pruner, chosen.reduction, chosen.workers) == ("auto", "halving", 4, 1)
    assert chosen.augment == "crop,color,gray,blur,flip"
    assert chosen.storage == "journal:hpt_studies.journal"
    assert chosen.adapt_winner
    assert not chosen.tune_strengths
    free = ("study", "steps", "trial_steps", "first_rung", "trials", "minutes")
    assert [getattr(chosen, name) for name in free] == [None] * len(free)


def test_it_has_the_settings_of_adapt():
    assert {field.name for field in dataclasses.fields(AdaptSettings)} <= set(OWN)


@pytest.mark.parametrize("augment", ["none", " none ", "none,"])
def test_no_augmentations_leave_nothing_to_choose_from(augment):
    assert "name the augmentations that may be used" in refusal("augment", augment)


@pytest.mark.parametrize("augment", ["crop,rotate", ","])
def test_unknown_augmentations_are_refused(augment):
    assert "crop, color, gray, blur, flip" in refusal("augment", augment)


@pytest.mark.parametrize("augment", ["crop", "flip,crop", "crop,color,gray,blur,flip"])
def test_any_others_may_be_chosen_from(augment):
    assert TuneSettings(augment=augment).augment == augment


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("objective", "accuracy", "auto, probe, knn, rotation, consistency, infonce"),
        ("objective", "", "auto, probe"),
        ("pruner", "median", "halving, hyperband, none"),
        ("steps", 0, "the minimum is 1"),
        ("trial_steps", 0, "the minimum is 1"),
        ("first_rung", 0, "the minimum is 1"),
        ("reduction", 1, "the minimum is 2"),
        ("trials", 0, "the minimum is 1"),
        ("minutes", 0, "greater than 0"),
        ("minutes", -1.0, "greater than 0"),
        ("minutes", float("inf"), "finite"),
        ("workers", 0, "the minimum is 1"),
        ("trials", 1.5, "expected int"),
        ("tune_strengths", "true", "expected bool"),
        ("adapt_winner", 1, "expected bool"),
        ("storage", None, "expected str"),
        ("strengths", "hue=2", None),
    ],
)
def test_values_out_of_range_are_refused(name, value, words):
    message = refusal(name, value)
    assert words is None or words in message
    assert str(value) in message or repr(value) in message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[(name, 1) for name in ("steps", "trial_steps", "first_rung", "trials", "workers")],
        *[("reduction", 2), ("minutes", 0.01), ("minutes", 1), ("study", "cats"), ("strengths", "hue=0.5")],
        *[("objective", name) for name in ("auto", "probe", "knn", "rotation", "infonce")],
        *[("pruner", name) for name in ("halving", "hyperband", "none")],
    ],
)
def test_values_at_the_limit_are_allowed(name, value):
    assert getattr(TuneSettings(**{name: value}), name) == value
