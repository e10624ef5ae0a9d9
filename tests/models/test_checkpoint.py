from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch

from hpt_mlflow.errors import HptError
from hpt_mlflow.models.architecture import Architecture
from hpt_mlflow.models.backbone import build_backbone
from hpt_mlflow.models.checkpoint import (
    CARD_FILE,
    WEIGHTS_FILE,
    BackboneCard,
    copy_to_cpu,
    load_backbone,
    save_backbone,
)

ARCH = "shufflenet_v2_x0_5"
CARD = BackboneCard(Architecture(ARCH, 32), 1024, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), ("mnist", "digits"), 12)


class Payload:
    """What a malicious file would hold: unpickling it makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    backbone, _ = build_backbone(Architecture(ARCH, 32))
    backbone(torch.randn(4, 3, 32, 32))  # moves the running statistics away from where they start
    save_backbone(tmp_path / "backbone", copy_to_cpu(backbone.state_dict()), CARD)
    return tmp_path / "backbone", backbone


def edit_card(folder: Path, **changes) -> None:
    file = folder / CARD_FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def assert_refused(folder: Path, pattern: str) -> None:
    with pytest.raises(HptError, match=pattern) as caught:
        load_backbone(folder, "the model")
    assert "\n" not in str(caught.value)


def test_round_trip_is_exact(saved):
    folder, backbone = saved
    torch.manual_seed(99)
    loaded, card = load_backbone(folder, "the model")
    assert card == CARD
    assert loaded.training
    before, after = backbone.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) and before[name].dtype == after[name].dtype for name in before)


def test_round_trip_of_another_memory_format_is_exact(saved, tmp_path):
    _, backbone = saved
    save_backbone(tmp_path / "other", copy_to_cpu(backbone.to(memory_format=torch.channels_last).state_dict()), CARD)
    loaded, _ = load_backbone(tmp_path / "other", "the model")
    assert all(torch.equal(a, b) for a, b in zip(backbone.parameters(), loaded.parameters(), strict=True))


def test_small_stem_is_remembered(tmp_path):
    backbone, feature_size = build_backbone(Architecture("resnet18", 16, small_stem=True))
    card = BackboneCard(Architecture("resnet18", 16, small_stem=True), feature_size, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    save_backbone(tmp_path, copy_to_cpu(backbone.state_dict()), card)
    loaded, loaded_card = load_backbone(tmp_path, "the model")
    assert loaded.conv1.kernel_size == (3, 3)
    assert loaded_card == card


def test_backbone_is_found_at_any_depth(saved):
    folder, _ = saved
    assert load_backbone(folder.parent, "the model")[1] == CARD


def test_files_are_safetensors_and_json(saved):
    folder, _ = saved
    assert sorted(file.name for file in folder.iterdir()) == [CARD_FILE, WEIGHTS_FILE]


def test_folder_without_card_was_not_made_here(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"something")
    assert_refused(tmp_path, "the model was not made by hpt_mlflow")


def test_truncated_weights_are_refused(saved):
    folder, _ = saved
    file = folder / WEIGHTS_FILE
    file.write_bytes(file.read_bytes()[:-1000])
    assert_refused(folder, "the model: its weights .* damaged")


def test_missing_weights_are_refused(saved):
    folder, _ = saved
    (folder / WEIGHTS_FILE).unlink()
    assert_refused(folder, "the model: its weights")


def test_weights_of_another_network_are_refused(saved):
    folder, _ = saved
    edit_card(folder, arch="squeezenet1_1", feature_size=512)
    assert_refused(folder, "the model: its weights do not fit")


def test_wrong_feature_size_is_refused(saved):
    folder, _ = saved
    edit_card(folder, feature_size=7)
    assert_refused(folder, "says 7 features.* has 1024")


def test_other_format_is_refused(saved):
    folder, _ = saved
    edit_card(folder, format="hpt_mlflow.backbone/999")
    assert_refused(folder, "another version of hpt_mlflow.*hpt_mlflow.backbone/1")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"format": "hpt_mlflow.backbone/1"}',
        '"text"',
        "null",
    ],
)
def test_damaged_card_is_refused(saved, text):
    folder, _ = saved
    (folder / CARD_FILE).write_text(text)
    assert_refused(folder, f"the model: {CARD_FILE} is damaged")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("unknown", 1),
        ("mean", 0.5),
        ("arch", "no_such_network"),
        ("image_size", "32"),
        ("arch", 5),
    ],
)
def test_card_with_a_wrong_value_is_refused(saved, name, value):
    folder, _ = saved
    edit_card(folder, **{name: value})
    assert_refused(folder, "^(the model|arch): ")


def test_pickle_in_place_of_weights_is_never_executed(saved, tmp_path):
    folder, _ = saved
    (folder / WEIGHTS_FILE).write_bytes(pickle.dumps(Payload(tmp_path / "executed")))
    assert_refused(folder, "the model: its weights")
    assert not (tmp_path / "executed").exists()


def test_torch_file_in_place_of_weights_is_never_executed(saved, tmp_path):
    folder, _ = saved
    torch.save(Payload(tmp_path / "executed"), folder / WEIGHTS_FILE)
    assert_refused(folder, "the model: its weights")
    assert not (tmp_path / "executed").exists()
