from __future__ import annotations

import pytest

from hpt_mlflow.errors import HptError
from hpt_mlflow.training.milestones import parse_milestones


@pytest.mark.parametrize(
    ("text", "steps", "expected"),
    [
        ("25%,50%,100%", 200, {50, 100, 200}),
        ("10, 20 ,30", 100, {10, 20, 30, 100}),
        ("10,50%", 100, {10, 50, 100}),
        ("", 7, {7}),
        (" , ,", 7, {7}),
        ("100", 100, {100}),
        ("1", 100, {1, 100}),
        ("50%,50", 100, {50, 100}),
        ("12.5%", 80, {10, 80}),
        ("33%", 10, {3, 10}),
        ("25%,50%,100%", 1, {1}),
        ("0.01%", 100, {1, 100}),
    ],
)
def test_steps_and_percentages(text, steps, expected):
    assert parse_milestones(text, steps) == expected


@pytest.mark.parametrize("entry", ["half", "10.5", "ten%", "%", "1e2", "50 percent"])
def test_what_is_no_number_is_refused(entry):
    with pytest.raises(HptError, match=r"^milestones: .* neither a step nor a percentage") as caught:
        parse_milestones(f"10,{entry}", 100)
    assert repr(entry) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("entry", ["0", "-1", "101", "0%", "-5%", "150%", "inf%", "nan%", "100.4%"])
def test_what_lies_outside_the_training_is_refused(entry):
    with pytest.raises(HptError, match=r"^milestones: .* is not within the 100 steps"):
        parse_milestones(entry, 100)


def test_refusal_names_entry_and_length():
    with pytest.raises(HptError, match=r"^milestones: 101 is not within the 100 steps"):
        parse_milestones("5,101", 100)
