from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hpt_mlflow.data.dataset import Dataset
from hpt_mlflow.data.split import Split
from hpt_mlflow.report.evaluation_card import evaluation_card

LABELS = np.arange(2000) % 4
BIRDS = Dataset("birds", "folder:/data/birds", [b""] * 2000, ["x"] * 2000, LABELS, ("a", "b", "c", "d"))
LUNGS = replace(BIRDS, name="lungs", uri="csv:/x.csv", labels=np.ones((2000, 3), np.uint8), classes=("E", "F", "G"))
SPLIT = Split(np.arange(1200), np.arange(1200, 1600), np.arange(1600, 2000))
FIGURES = {
    "test/accuracy": 0.9,
    "test/accuracy_low": 0.87,
    "test/accuracy_high": 0.9249,
    "test/balanced_accuracy": 0.85,
    "knn/test_accuracy": 0.8,
    "chance/accuracy": 0.3,
}
UNTRAINED = {
    "random/accuracy": 0.6,
    "random/balanced_accuracy": 0.55,
    "random/knn_accuracy": 0.5,
    "gain/accuracy": 0.3,
    "gain/accuracy_low": 0.25,
    "gain/accuracy_high": 0.35,
}


def card(result=None, dataset=BIRDS, split=SPLIT, note=""):
    result = FIGURES | UNTRAINED if result is None else result
    classifier, chain = "models:/hpt-classifier/2", ("mnist", "birds")
    return evaluation_card("models:/hpt/4", classifier, chain, dataset, split, "a linear probe", result, note)


def table_of(text):
    """The Markdown table as rows of cells."""
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows]


def test_it_says_what_was_evaluated_on_what_and_how():
    text = card()
    assert "**Model** `models:/hpt/4` (mnist > birds)" in text
    assert "**Method** a linear probe" in text
    assert "**Result** accuracy 0.900 (95%: 0.870 to 0.925)" in text
    assert "`folder:/data/birds`: 4 classes; learned from 1,200 images, chosen on 400, tested once on 400" in text


def test_only_the_labels_that_were_learned_from_count_as_such():
    assert "learned from 10 images, chosen on 400" in card(split=replace(SPLIT, train=np.arange(10)))


def test_it_compares_with_the_untrained_network_and_with_chance():
    header, rule, *rows = table_of(card())
    assert header == ["", "accuracy", "balanced", "20-NN"]
    assert rows == [
        ["this model", "0.900", "0.850", "0.800"],
        ["untrained network", "0.600", "0.550", "0.500"],
        ["the same answer for all", "0.300", "", ""],
    ]
    assert {len(row) for row in (header, rule, *rows)} == {4}


def test_without_an_untrained_network_there_is_neither_row_nor_gain():
    text = card(FIGURES)
    assert [row[0] for row in table_of(text)[2:]] == ["this model", "the same answer for all"]
    assert "Gain" not in text


@pytest.mark.parametrize(
    ("gain", "low", "high", "words"),
    [
        (0.3, 0.25, 0.35, "+0.300 (95%: +0.250 to +0.350)."),
        (-0.3, -0.35, -0.25, "-0.300 (95%: -0.350 to -0.250)."),
        (0.01, -0.02, 0.04, "+0.010 (95%: -0.020 to +0.040, so it may be chance)."),
        (0.0, 0.0, 0.0, "+0.000 (95%: +0.000 to +0.000, so it may be chance)."),
    ],
)
def test_a_gain_says_how_sure_it_is(gain, low, high, words):
    ends = {"gain/accuracy": gain, "gain/accuracy_low": low, "gain/accuracy_high": high}
    assert f"Gain over the untrained network: {words}" in card(FIGURES | UNTRAINED | ends)


def test_labels_are_judged_by_the_area_under_the_curve():
    result = {f"test/auroc{end}": value for end, value in {"": 0.8, "_low": 0.75, "_high": 0.85}.items()}
    result |= {"chance/auroc": 0.5, "random/auroc": 0.6}
    result |= {"gain/auroc": 0.2, "gain/auroc_low": 0.1, "gain/auroc_high": 0.3}
    text = card(result, LUNGS)
    assert "**Result** mean AUROC 0.800 (95%: 0.750 to 0.850)" in text
    assert "`csv:/x.csv`: 3 labels;" in text
    assert "Gain over the untrained network: +0.200" in text
    assert table_of(text)[0] == ["", "mean AUROC"]
    assert [row[1] for row in table_of(text)[2:]] == ["0.800", "0.600", "0.500"]


def test_a_note_is_there_where_there_is_something_to_note():
    assert "**Note** train for more steps." in card(note="train for more steps")
    assert "Note" not in card()


def test_it_ends_in_the_next_commands():
    *_, before, predict, serve, promote, after = card().splitlines()
    assert before == after == "```"
    assert predict == "hpt predict models:/hpt-classifier/2 FOLDER"
    assert serve == "mlflow models serve -m models:/hpt-classifier/2 --env-manager local"
    assert promote == "hpt promote models:/hpt/4"
