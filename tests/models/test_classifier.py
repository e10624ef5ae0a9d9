import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hpt_mlflow.errors import HptError
from hpt_mlflow.models.classifier import (
    CLASSIFIER_FILE,
    HEAD_FILE,
    ClassifierCard,
    load_classifier,
    save_classifier,
)

CARD = ClassifierCard(("Katze", "犬", 'a "b"'), False, "pets", "fast")
FEATURES = 5


class Payload:
    """Pickled, it runs code when it is loaded."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


def head(features=FEATURES, outputs=3):
    generator = torch.Generator().manual_seed(0)
    shapes = {"mean": (features,), "std": (features,), "weight": (features, outputs), "bias": (outputs,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    save_classifier(folder, head(), CARD)
    return folder


def edit_card(folder, **values):
    file = folder / CLASSIFIER_FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def assert_refused(folder, *words):
    with pytest.raises(HptError) as caught:
        load_classifier(folder, "the model", FEATURES)
    assert "\n" not in str(caught.value)
    for word in ("the model", *words):
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "card", [CARD, replace(CARD, multilabel=True, protocol="paper", resize_to=37), replace(CARD, dataset="")]
)
def test_what_is_saved_is_loaded(folder, card):
    save_classifier(folder, head(), card)
    loaded, loaded_card = load_classifier(folder, "the model", FEATURES)
    assert loaded_card == card
    assert loaded.keys() == head().keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in head().items())


def test_a_head_that_lies_otherwise_in_memory_is_the_same(folder):
    turned = head() | {"weight": head()["weight"].T.contiguous().T}
    save_classifier(folder, turned, CARD)
    assert torch.equal(load_classifier(folder, "the model", FEATURES)[0]["weight"], head()["weight"])


def test_it_is_found_at_any_depth(folder):
    assert load_classifier(folder.parent, "the model", FEATURES)[1] == CARD


def test_a_backbone_alone_has_none(tmp_path):
    (tmp_path / "backbone.json").write_text("{}")
    assert load_classifier(tmp_path, "the model", FEATURES) is None


def test_files_are_safetensors_and_json(folder):
    assert sorted(file.name for file in folder.iterdir()) == [CLASSIFIER_FILE, HEAD_FILE]


def test_a_card_from_before_images_had_a_margin_is_read(folder):
    file = folder / CLASSIFIER_FILE
    values = json.loads(file.read_text())
    del values["resize_to"]
    file.write_text(json.dumps(values))
    assert load_classifier(folder, "the model", FEATURES)[1] == CARD


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", "null", '"text"', "5", '{"format": "hpt_mlflow.classifier/1"}', "\ufeff{}", "[" * 200_000],
)
def test_a_damaged_card_is_refused(folder, text):
    (folder / CLASSIFIER_FILE).write_text(text)
    assert_refused(folder, f"{CLASSIFIER_FILE} is damaged")


def test_a_card_that_is_no_text_is_refused(folder):
    (folder / CLASSIFIER_FILE).write_bytes(b"\xff\xfe\x00")
    assert_refused(folder, f"{CLASSIFIER_FILE} is damaged")
    (folder / CLASSIFIER_FILE).unlink()
    (folder / CLASSIFIER_FILE).mkdir()
    assert_refused(folder, f"{CLASSIFIER_FILE} is damaged")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("classes", None),
        ("classes", 3),
        ("classes", "abc"),
        ("classes", {"a": 1, "b": 2, "c": 3}),
        ("classes", ["a", "b", 3]),
        ("classes", ["a", "b", None]),
        ("multilabel", "yes"),
        ("multilabel", 1),
        ("multilabel", None),
        ("resize_to", "40"),
        ("resize_to", 40.5),
        ("resize_to", True),
        ("resize_to", 0),
        ("dataset", 5),
        ("protocol", ["fast"]),
        ("unknown\nline", 1),
    ],
)
def test_a_card_with_a_wrong_value_is_refused(folder, name, value):
    edit_card(folder, **{name: value})
    assert_refused(folder, f"{CLASSIFIER_FILE} is damaged")


@pytest.mark.parametrize("name", ["classes", "multilabel", "dataset", "protocol"])
def test_a_card_that_lacks_something_is_refused(folder, name):
    file = folder / CLASSIFIER_FILE
    values = json.loads(file.read_text())
    del values[name]
    file.write_text(json.dumps(values))
    assert_refused(folder, f"{CLASSIFIER_FILE} is damaged", name)


def test_a_card_of_another_version_is_refused(folder):
    edit_card(folder, format="hpt_mlflow.classifier/9")
    assert_refused(folder, "another version", "hpt_mlflow.classifier/1")


@pytest.mark.parametrize(
    "other",
    [
        head(features=4),
        head(outputs=2),
        head() | {"weight": head()["weight"].T.contiguous()},
        head() | {"bias": head()["bias"][None]},
        head() | {"mean": torch.zeros(4)},
        head() | {"std": torch.zeros(())},
    ],
    ids=["features", "classes", "turned", "bias", "mean", "std"],
)
def test_a_head_of_other_shapes_is_refused(folder, other):
    save_file(other, folder / HEAD_FILE)
    assert_refused(folder, "does not fit 5 features and 3 classes")


def test_a_head_of_other_numbers_is_refused(folder):
    for dtype in (torch.float64, torch.float16, torch.int64):
        save_file(head() | {"weight": head()["weight"].to(dtype)}, folder / HEAD_FILE)
        assert_refused(folder, "does not fit", str(dtype))


def test_what_else_is_in_the_file_is_left_out(folder):
    save_file(head() | {"multilabel": torch.ones(1), "more": torch.zeros(3)}, folder / HEAD_FILE)
    assert load_classifier(folder, "the model", FEATURES)[0].keys() == head().keys()


@pytest.mark.parametrize("name", list(head()))
def test_a_head_that_lacks_a_tensor_is_refused(folder, name):
    tensors = head()
    del tensors[name]
    save_file(tensors, folder / HEAD_FILE)
    assert_refused(folder, f"{HEAD_FILE} is missing or damaged")


@pytest.mark.parametrize("size", [0, 4, 100, -1])
def test_a_truncated_head_is_refused(folder, size):
    file = folder / HEAD_FILE
    file.write_bytes(file.read_bytes()[:size])
    assert_refused(folder, f"{HEAD_FILE} is missing or damaged")


def test_a_missing_head_is_refused(folder):
    (folder / HEAD_FILE).unlink()
    assert_refused(folder, f"{HEAD_FILE} is missing or damaged")


@pytest.mark.parametrize("file", [HEAD_FILE, CLASSIFIER_FILE])
@pytest.mark.parametrize("dump", [pickle.dump, torch.save])
def test_code_in_place_of_data_is_never_executed(folder, tmp_path, file, dump):
    with open(folder / file, "wb") as opened:
        dump(Payload(tmp_path / "executed"), opened)
    assert_refused(folder, "damaged")
    assert not (tmp_path / "executed").exists()
