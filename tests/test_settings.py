from __future__ import annotations

import dataclasses
import json
from pathlib import Path, PurePosixPath

import numpy as np
import pytest

from hpt_mlflow.errors import HptError
from hpt_mlflow.options import Settings, choices_of, value_type
from hpt_mlflow.reference import reference_page
from hpt_mlflow.settings import (
    AdaptSettings,
    EvaluateSettings,
    MainSettings,
    PretrainSettings,
    TrainingSettings,
)
from hpt_mlflow.stages import STAGES as ALL_STAGES
from hpt_mlflow.training.plan import PRESETS

STAGES = {name: stage.settings for name, stage in ALL_STAGES.items()}


def assert_refused(settings: type[Settings], name: str, value, words: str) -> None:
    with pytest.raises(HptError) as caught:
        settings(**{name: value})
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(f"{name}: ")
    assert words in text
    assert str(value) in text or repr(value) in text


@pytest.mark.parametrize("settings", STAGES.values())
def test_defaults_are_allowed(settings):
    chosen = settings()
    assert all(getattr(chosen, field.name) == field.default for field in dataclasses.fields(settings))


@pytest.mark.parametrize(
    ("settings", "name", "value", "words"),
    [
        (PretrainSettings, "image_size", 7, "minimum is 8"),
        (PretrainSettings, "image_size", 2049, "maximum is 2048"),
        (AdaptSettings, "image_size", 7, "minimum is 8"),
        (PretrainSettings, "steps", -1, "minimum is 0"),
        (PretrainSettings, "batch_size", 1, "minimum is 2"),
        (PretrainSettings, "learning_rate", 0, "greater than 0"),
        (PretrainSettings, "learning_rate", -0.1, "greater than 0"),
        (PretrainSettings, "weight_decay", -1e-9, "minimum is 0"),
        (PretrainSettings, "key_momentum", 1.001, "maximum is 1"),
        (PretrainSettings, "temperature", 0.0, "greater than 0"),
        (PretrainSettings, "queue_size", 0, "minimum is 1"),
        (PretrainSettings, "bn_splits", 0, "minimum is 1"),
        (PretrainSettings, "workers", -1, "minimum is 0"),
        (PretrainSettings, "seed", -1, "minimum is 0"),
        (PretrainSettings, "checkpoint_every", -5, "minimum is 0"),
        (EvaluateSettings, "batch_size", 1, "minimum is 2"),
        (MainSettings, "base_steps", 0, "minimum is 1"),
    ],
)
def test_value_out_of_range_is_refused(settings, name, value, words):
    assert_refused(settings, name, value, words)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image_size", 8),
        ("image_size", 2048),
        ("steps", 1),
        ("batch_size", 2),
        ("key_momentum", 1),
        ("weight_decay", 0),
    ],
)
def test_value_at_the_limit_is_allowed(name, value):
    assert getattr(PretrainSettings(**{name: value}), name) == value


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("steps", "3", "expected int"),
        ("steps", 3.0, "expected int"),
        ("steps", True, "expected int"),
        ("learning_rate", "0.1", "expected float"),
        ("learning_rate", True, "expected float"),
        ("small_stem", 1, "expected bool"),
        ("strict", "false", "expected bool"),
        ("data", 5, "expected str"),
        ("arch", ["resnet18"], "expected str"),
    ],
)
def test_value_of_another_type_is_refused(name, value, words):
    assert_refused(PretrainSettings, name, value, words)


@pytest.mark.parametrize(
    ("name", "value", "plain"),
    [
        ("data", Path("photos/cats"), "photos/cats"),
        ("data", PurePosixPath("~/photos"), "~/photos"),
        ("weights", Path("/data/moco.pth"), "/data/moco.pth"),
        ("root", Path("data"), "data"),
        ("arch", np.str_("resnet18"), "resnet18"),
        ("steps", np.int64(5), 5),
        ("seed", np.uint8(7), 7),
        ("steps", np.array(5), 5),
        ("learning_rate", np.float64(0.1), 0.1),
        ("learning_rate", np.float32(0.5), 0.5),
        ("learning_rate", np.int32(1), 1.0),
        ("learning_rate", 1, 1.0),
        ("cache_gib", 0, 0.0),
        ("small_stem", np.bool_(True), True),
        ("strict", np.False_, False),
    ],
)
def test_paths_and_numbers_of_numpy_become_plain_values(name, value, plain):
    found = getattr(PretrainSettings(**{name: value}), name)
    assert found == plain
    assert type(found) is type(plain)
    assert json.dumps(dataclasses.asdict(PretrainSettings(**{name: value}))) == json.dumps(
        dataclasses.asdict(PretrainSettings(**{name: plain}))
    )


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("steps", np.float64(3.0), "expected int, got 3.0"),
        ("steps", np.bool_(True), "expected int, got True"),
        ("steps", np.array([5]), "expected int"),
        ("steps", np.int64(-1), "minimum is 0"),
        ("steps", Path("5"), "expected int"),
        ("learning_rate", np.float32("nan"), "finite"),
        ("learning_rate", np.bool_(True), "expected float, got True"),
        ("learning_rate", 10**400, "expected float"),
        ("small_stem", np.int64(1), "expected bool"),
        ("data", np.int64(1), "expected str"),
        ("data", b"photos", "expected str"),
    ],
)
def test_what_means_something_else_is_refused_of_numpy_too(name, value, words):
    with pytest.raises(HptError, match=f"^{name}: ") as caught:
        PretrainSettings(**{name: value})
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (PretrainSettings, "data"),
        (PretrainSettings, "weights"),
        (PretrainSettings, "model_name"),
        (AdaptSettings, "parent"),
        (EvaluateSettings, "model"),
        (MainSettings, "base"),
        (MainSettings, "target"),
        (MainSettings, "source"),
    ],
)
def test_an_empty_text_is_refused(settings, name):
    with pytest.raises(HptError, match=f"^{name}: it is empty, perhaps from a variable that is not set; give a value"):
        settings(**{name: ""})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_number_that_is_not_finite_is_refused(value):
    assert_refused(PretrainSettings, "learning_rate", value, "finite")


@pytest.mark.parametrize(
    ("settings", "name", "value", "words"),
    [
        (PretrainSettings, "preset", "slow", "quick, gentle, paper"),
        (MainSettings, "preset", "", "quick, gentle, paper"),
        (AdaptSettings, "update", "some\nlines", "all, norm, last:N, lora, explora, explora:N, bn, bn-stats"),
        (PretrainSettings, "precision", "int8", "auto, float32, bfloat16, float16"),
        (PretrainSettings, "augment", "crop,blurr", "crop, color, gray, blur, flip"),
    ],
)
def test_unknown_choice_is_refused(settings, name, value, words):
    with pytest.raises(HptError, match=f"^{name}: ") as caught:
        settings(**{name: value})
    assert words in str(caught.value)
    assert repr(value.rpartition(",")[2]) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_whole_number_is_a_number():
    assert PretrainSettings(learning_rate=1).learning_rate == 1


@pytest.mark.parametrize("name", ["steps", "arch", "learning_rate", "workers", "alias", "root"])
def test_what_may_be_left_open_may_be_none(name):
    assert getattr(PretrainSettings(**{name: None}), name) is None


@pytest.mark.parametrize(
    ("settings", "name"),
    [(PretrainSettings, "seed"), (PretrainSettings, "data"), (AdaptSettings, "update"), (EvaluateSettings, "model")],
)
def test_what_must_have_a_value_may_not_be_none(settings, name):
    assert_refused(settings, name, None, "None")


def test_unknown_name_is_refused():
    with pytest.raises(TypeError, match="stepz"):
        PretrainSettings(stepz=3)


def test_settings_cannot_be_changed_afterwards():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PretrainSettings().steps = 3


@pytest.mark.parametrize(
    ("name", "kind"), [("steps", int), ("seed", int), ("learning_rate", float), ("small_stem", bool), ("arch", str)]
)
def test_value_type_leaves_none_out(name, kind):
    assert value_type(PretrainSettings, name) is kind
    assert value_type(PretrainSettings(), name) is kind


@pytest.mark.parametrize("settings", [TrainingSettings, *STAGES.values()])
def test_every_setting_says_what_it_means(settings):
    for field in dataclasses.fields(settings):
        assert len(field.metadata["help"]) > 10
        assert field.metadata["help"].endswith(".")


@pytest.mark.parametrize("stage", STAGES)
def test_reference_has_a_row_for_every_setting(stage):
    section = reference_page(STAGES).split(f"\n## {stage}\n")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")][1:]
    named = [row.split(" | ")[0].removeprefix("| ") for row in rows]
    assert sorted(named) == sorted(field.name for field in dataclasses.fields(STAGES[stage]))


def test_reference_has_the_defaults_of_both_presets():
    page = reference_page(STAGES)
    for kind in ("pretrain", "adapt"):
        plans = {name: getattr(preset, kind) for name, preset in PRESETS.items()}
        for option in ("learning_rate", "steps"):
            assert ", ".join(f"{getattr(plan, option):.10g} ({name})" for name, plan in plans.items()) in page


def test_choices_of_presets_are_those_that_exist():
    for settings in (TrainingSettings, MainSettings):
        field = next(field for field in dataclasses.fields(settings) if field.name == "preset")
        assert set(choices_of(field)) == set(PRESETS)
