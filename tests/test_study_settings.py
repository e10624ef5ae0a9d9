from __future__ import annotations

import dataclasses

import pytest

from hpt_mlflow.errors import HptError
from hpt_mlflow.experiments import STUDIES
from hpt_mlflow.settings import StudySettings, TrainingSettings
from hpt_mlflow.settings.study import listed

# Those of study alone, or of study in another way.
OWN = {field.name: field for field in dataclasses.fields(StudySettings)}


def refusal(name, **said):
    with pytest.raises(HptError, match=f"^{name}: ") as caught:
        StudySettings(**said)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_studies_are_those_that_there_are():
    assert all(study in OWN["study"].metadata["help"] for study in STUDIES)


def test_the_defaults():
    chosen = StudySettings()
    assert (chosen.study, chosen.base, chosen.target) == ("separability", "builtin:noto", "builtin:twemoji")
    assert (chosen.seeds, chosen.seed, chosen.at_once, chosen.protocol) == (3, 0, 1, "fast")
    assert (chosen.labels, chosen.amounts) == ("1000,100%", "1%,10%,25%,50%,100%")
    assert chosen.milestones == "2%,5%,10%,20%,35%,50%,75%,100%"
    assert chosen.model_name == "hpt-study"
    assert not chosen.every_subset
    assert not chosen.dry_run
    free = ("base_model", "source", "base_steps", "source_steps", "steps", "protocol_steps", "images", "alias")
    assert [getattr(chosen, name) for name in free] == [None] * len(free)


def test_it_has_the_settings_of_training():
    assert issubclass(StudySettings, TrainingSettings)
    assert {field.name for field in dataclasses.fields(TrainingSettings)} <= set(OWN)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("study", "accuracy", "separability, semi-supervised, sequential, augmentation, data-amount"),
        ("study", "", "separability"),
        ("protocol", "finetune", "fast, paper"),
        ("seeds", 0, "the minimum is 1"),
        ("seeds", 101, "the maximum is 100"),
        ("seeds", True, "expected int"),
        ("base_steps", 0, "the minimum is 1"),
        ("source_steps", 0, "the minimum is 1"),
        ("steps", 0, "the minimum is 1"),
        ("protocol_steps", 0, "the minimum is 1"),
        ("at_once", 0, "the minimum is 1"),
        ("every_subset", "true", "expected bool"),
        ("dry_run", 1, "expected bool"),
        ("base", None, "expected str"),
        ("target", None, "expected str"),
        ("images", "110%", "up to 100%"),
        ("images", "many", "neither a number nor a percentage"),
        ("augment", "crop,rotate", "choose from crop, color, gray, blur, flip"),
        ("strengths", "hue=2", None),
    ],
)
def test_values_out_of_range_are_refused(name, value, words):
    message = refusal(name, **{name: value})
    assert words is None or words in message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[(name, 1) for name in ("seeds", "base_steps", "source_steps", "steps", "at_once")],
        *[("seeds", 100), ("base_model", "models:/hpt/1"), ("source", "builtin:digits"), ("protocol", "paper")],
        *[("images", "10%"), ("augment", "crop"), ("augment", "none"), ("labels", "1"), ("amounts", "100%,7")],
    ],
)
def test_values_at_the_limit_are_allowed(name, value):
    # There must be a source to train on for so many steps.
    more = {"source": "builtin:digits"} if name == "source_steps" else {}
    assert getattr(StudySettings(**{name: value} | more), name) == value


@pytest.mark.parametrize("name", ["labels", "amounts"])
@pytest.mark.parametrize("value", ["0", "0%", "101%", "-5", "ten", "10%,x", "1.5", "10 20", "%", "nan%", "inf%"])
def test_labels_and_amounts_are_numbers_or_percentages(name, value):
    last = value.rpartition(",")[2]
    assert last in refusal(name, **{name: value})


@pytest.mark.parametrize("name", ["labels", "amounts"])
@pytest.mark.parametrize("value", [",", " , "])
def test_labels_and_amounts_name_at_least_one(name, value):
    assert "names none" in refusal(name, **{name: value})


def test_what_is_named_stands_between_commas():
    assert listed(" 10%, 5 ,,100%,") == ["10%", "5", "100%"]
    assert listed("") == []


def test_sequential_needs_a_source():
    assert "name one" in refusal("source", study="sequential")
    assert StudySettings(study="sequential", source="builtin:digits").source == "builtin:digits"


@pytest.mark.parametrize("augment", ["crop", "none", "crop,color,gray,blur"])
def test_the_study_of_augmentations_chooses_them_itself(augment):
    assert "leave it out" in refusal("augment", study="augmentation", augment=augment)


@pytest.mark.parametrize(
    "augment",
    [
        *("flip,blur,gray,color,crop", "crop, color, gray, blur, flip", " crop,color,,gray,blur,flip,crop, "),
    ],
)
def test_all_augmentations_in_whatever_form_are_no_choice(augment):
    assert StudySettings(study="augmentation", augment=augment).augment == augment


def test_the_study_of_amounts_chooses_images_itself():
    assert "use amounts" in refusal("images", study="data-amount", images="10%")


@pytest.mark.parametrize("study", STUDIES)
def test_no_study_takes_an_alias(study):
    assert "hpt promote" in refusal("alias", study=study, source="builtin:digits", alias="base")


@pytest.mark.parametrize("study", STUDIES)
def test_each_seed_has_a_split_of_its_own(study):
    assert "use seed" in refusal("split_seed", study=study, source="builtin:digits", split_seed=1)
    assert StudySettings(study=study, source="builtin:digits", split_seed=0, seed=1).seed == 1


@pytest.mark.parametrize("study", STUDIES)
def test_steps_of_a_probe_are_refused_where_there_is_none(study):
    said = {"study": study, "source": "builtin:digits", "protocol_steps": 1}
    assert StudySettings(**said, protocol="paper").protocol_steps == 1
    if study == "semi-supervised":
        assert StudySettings(**said).protocol_steps == 1
    else:
        assert "use it with paper, or semi-supervised" in refusal("protocol_steps", **said)


def test_steps_of_what_is_not_trained_are_refused():
    assert "base_model" in refusal("base_steps", base_steps=10, base_model="models:/hpt/1")
    assert "name one with source" in refusal("source_steps", source_steps=10)
    StudySettings(base_steps=10, source="builtin:noto", source_steps=10)
