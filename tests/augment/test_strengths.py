from __future__ import annotations

import dataclasses
import random
from dataclasses import replace

import pytest

from hpt_mlflow.augment.subset import NAMES, RANGES, Strengths, format_strengths, parse_strengths, with_jitter
from hpt_mlflow.errors import HptError


def refusal(text):
    with pytest.raises(HptError) as caught:
        parse_strengths(text)
    message = str(caught.value)
    assert message.startswith("strengths: ")
    assert "\n" not in message
    return message


def drawn(random_numbers):
    """Strengths of which some differ from the defaults."""
    changed = {}
    for name in NAMES:
        if random_numbers.random() < 0.5:
            continue
        if name in RANGES:
            changed[name] = tuple(sorted((random_numbers.uniform(0.001, 1), random_numbers.uniform(0.001, 1))))
        else:
            changed[name] = random_numbers.uniform(0, 0.5 if name == "hue" else 1)
    return replace(Strengths(), **changed)


@pytest.mark.parametrize("text", ["", " ", ",", " , ,", "hue=0.4", "crop_scale=0.2:1,blur_sigma=0.1:2,jitter=0.4"])
def test_the_defaults_are_written_as_nothing(text):
    assert parse_strengths(text) == Strengths()
    assert format_strengths(parse_strengths(text)) == ""


def test_what_is_written_is_read_back():
    random_numbers = random.Random(0)
    every = [drawn(random_numbers) for _ in range(500)]
    assert [parse_strengths(format_strengths(strengths)) for strengths in every] == every
    assert len(set(every)) > 490


@pytest.mark.parametrize(
    "changed",
    [
        {"hue": 1e-300},
        {"hue": 0.1 + 0.2},
        {"gray_p": 5e-324},
        {"crop_scale": (0.001, 0.001)},
        {"crop_scale": (1.0, 1.0)},
        {"crop_scale": (0.2, 0.9)},
        {"blur_sigma": (2.0, 100.0)},
        {"blur_sigma": (0.1, 1 / 3)},
        {"color_p": 0},
        {"flip_p": 1},
    ],
)
def test_what_is_written_is_read_back_to_the_last_digit(changed):
    strengths = replace(Strengths(), **changed)
    assert parse_strengths(format_strengths(strengths)) == strengths
    assert format_strengths(strengths).count("=") == 1


@pytest.mark.parametrize("name", [name for name in NAMES if name not in RANGES])
def test_a_number_changes_its_strength_alone(name):
    assert parse_strengths(f"{name}=0.25") == replace(Strengths(), **{name: 0.25})
    assert format_strengths(replace(Strengths(), **{name: 0.25})) == f"{name}=0.25"


@pytest.mark.parametrize(
    ("text", "changed"),
    [
        ("crop_scale=0.3", {"crop_scale": (0.3, 1.0)}),
        ("crop_scale=0.3:0.6", {"crop_scale": (0.3, 0.6)}),
        ("blur_sigma=1.5", {"blur_sigma": (0.1, 1.5)}),
        ("blur_sigma=0.5:1.5", {"blur_sigma": (0.5, 1.5)}),
        ("jitter=0.2", {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.2}),
        ("jitter=0.8", {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.5}),
        ("jitter=0", {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}),
        ("jitter=0.8,hue=0.1", {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.1}),
        ("hue=0.1,jitter=0.3", {"brightness": 0.3, "contrast": 0.3, "saturation": 0.3, "hue": 0.3}),
        (" blur_p = 0.2 ,, gray_p=1e-1,", {"blur_p": 0.2, "gray_p": 0.1}),
        ("crop_scale = 0.3 : 0.6", {"crop_scale": (0.3, 0.6)}),
        ("hue=0.1,hue=0.2", {"hue": 0.2}),
    ],
)
def test_how_strengths_are_written(text, changed):
    assert parse_strengths(text) == replace(Strengths(), **changed)


def test_the_order_of_writing_does_not_matter():
    assert parse_strengths("gray_p=0.1,crop_scale=0.3") == parse_strengths("crop_scale=0.3,gray_p=0.1")
    assert format_strengths(parse_strengths("gray_p=0.1,crop_scale=0.3")) == "crop_scale=0.3:1.0,gray_p=0.1"


@pytest.mark.parametrize("jitter", [0.0, 0.3, 0.5, 0.7, 1.0])
def test_jitter_is_one_number_for_four(jitter):
    strengths = with_jitter(Strengths(gray_p=0.1), jitter)
    assert dataclasses.astuple(strengths)[1:5] == (jitter, jitter, jitter, min(jitter, 0.5))
    assert strengths == parse_strengths(f"gray_p=0.1,jitter={jitter}")


@pytest.mark.parametrize(
    "text", ["crop_scale=0.001:1", "blur_sigma=0.001:100", "hue=0.5", "hue=0", "jitter=1", "color_p=1", "flip_p=0"]
)
def test_a_value_at_the_limit_is_allowed(text):
    parse_strengths(text)


@pytest.mark.parametrize(
    ("text", "given", "allowed"),
    [
        ("crop_scale=0", "crop_scale=0:1", "between 0.001 and 1"),
        ("crop_scale=1.1", "crop_scale=1.1:1", "between 0.001 and 1"),
        ("crop_scale=0.5:1.1", "crop_scale=0.5:1.1", "between 0.001 and 1"),
        ("crop_scale=0.6:0.3", "crop_scale=0.6:0.3", "the lower end first"),
        ("blur_sigma=0:1", "blur_sigma=0:1", "between 0.001 and 100"),
        ("blur_sigma=101", "blur_sigma=0.1:101", "between 0.001 and 100"),
        ("blur_sigma=0.05", "blur_sigma=0.1:0.05", "the lower end first"),
        ("hue=0.6", "hue=0.6", "between 0 and 0.5"),
        ("hue=0.5000001", "hue=0.5000001", "between 0 and 0.5"),
        ("hue=-0.1", "hue=-0.1", "between 0 and 0.5"),
        ("brightness=1.5", "brightness=1.5", "between 0 and 1"),
        ("color_p=1.01", "color_p=1.01", "between 0 and 1"),
        ("flip_p=-1", "flip_p=-1", "between 0 and 1"),
        ("jitter=1.2", "brightness=1.2", "between 0 and 1"),
        ("jitter=-0.2", "brightness=-0.2", "between 0 and 1"),
        ("gray_p=nan", "gray_p=nan", "between 0 and 1"),
        ("gray_p=inf", "gray_p=inf", "between 0 and 1"),
        ("hue=-inf", "hue=-inf", "between 0 and 0.5"),
        ("jitter=nan", "brightness=nan", "between 0 and 1"),
        ("jitter=inf", "brightness=inf", "between 0 and 1"),
        ("crop_scale=nan", "crop_scale=nan:1", "between 0.001 and 1"),
        ("crop_scale=0.2:nan", "crop_scale=0.2:nan", "between 0.001 and 1"),
        ("blur_sigma=inf", "blur_sigma=0.1:inf", "between 0.001 and 100"),
        ("blur_p=1e400", "blur_p=inf", "between 0 and 1"),
        ("blur_p=0.1,gray_p=2", "gray_p=2", "between 0 and 1"),
    ],
)
def test_a_value_out_of_its_range_is_refused(text, given, allowed):
    message = refusal(text)
    assert message.startswith(f"strengths: {given} is not ")
    assert allowed in message


@pytest.mark.parametrize(
    "part", ["hue", "hue=", "hue=much", "=", "crop_scale=0.1:", "crop_scale=:", "crop_scale=0.1:0.2:0.3", "hue=0.1=0.2"]
)
def test_what_has_no_number_is_refused_with_an_example(part):
    message = refusal(f"blur_p=0.1,{part}")
    assert repr(part) in message
    assert "write for example crop_scale=0.3 or blur_sigma=0.1:1.5" in message


@pytest.mark.parametrize("part", ["sharpness=0.1", "=0.1", "Hue=0.1", "hue=0.1:0.2", "jitter=0.1:0.2", "gray_p=0:1"])
def test_what_is_unknown_is_refused_with_the_names(part):
    message = refusal(f"{part},blur_p=0.1")
    assert repr(part) in message
    assert all(name in message for name in (*NAMES, "jitter"))
