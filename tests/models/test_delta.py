"""Backbones kept as their difference from a parent: what is kept, and what is put together or refused."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hpt_mlflow.errors import HptError
from hpt_mlflow.models.architecture import Architecture
from hpt_mlflow.models.backbone import build_backbone
from hpt_mlflow.models.checkpoint import BackboneCard, copy_to_cpu, load_backbone, replace_difference, save_backbone
from hpt_mlflow.models.delta import DeltaParent, difference, digest_of, put_together
from hpt_mlflow.models.foreign import read_weights
from hpt_mlflow.models.learning import let_learn
from hpt_mlflow.models.lora import merged
from hpt_mlflow.models.update import parse_update

ARCH = Architecture("shufflenet_v2_x0_5", 32)
CARD = BackboneCard(ARCH, 1024, (0.5,) * 3, (0.25,) * 3, ("cats",), 5)
PARENT = "models:/hpt/3"
LAYER = "stage2.1.branch2.0"
UP = f"{LAYER}.lora_up"


def state_of(seed=0, update=None, rank=None):
    """The state of a network, with random low-rank changes if its update has any."""
    backbone, _ = build_backbone(ARCH, seed)
    if update:
        let_learn(backbone, parse_update(update, rank))
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if name.endswith("lora_up"):
                parameter.normal_(generator=generator)
    return copy_to_cpu(backbone.state_dict())


def is_same(one, other):
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and one[name].numpy().tobytes() == other[name].numpy().tobytes()
        for name in one
    )


@pytest.fixture
def folders(tmp_path):
    """Whole weights, and a difference from them; finds them by their addresses."""
    found = {}

    def saved(address, state, parent=None):
        found[address] = tmp_path / address.replace("/", "-")
        save_backbone(found[address], state, CARD, parent and DeltaParent(parent, load(parent)))
        return found[address]

    def find(address, what):
        if address not in found:
            raise HptError(f"{what}, which is gone")
        return found[address]

    def load(address):
        return load_backbone(found[address], address, find)[0].state_dict()

    saved.load, saved.find = load, find
    saved(PARENT, state_of())
    saved("models:/hpt/4", state_of(update="lora", rank=1), PARENT)
    return saved


def test_a_low_rank_change_is_the_sum_of_exact_products_rounded_once():
    state = state_of(update="lora", rank=3)
    whole = merged(state)
    weight, up, down = (state[f"{LAYER}.{name}"].double().numpy() for name in ("weight", "lora_up", "lora_down"))
    change = np.zeros(weight.shape[:2])
    for rank in range(3):
        change += up[:, rank, None] * down.reshape(3, -1)[rank]
    expected = (weight + change[:, :, None, None]).astype(np.float32)
    assert whole[f"{LAYER}.weight"].numpy().tobytes() == expected.tobytes()
    np.testing.assert_allclose(change, up @ down.reshape(3, -1), rtol=1e-9)
    assert whole.keys() == state_of().keys()


def test_the_number_of_threads_changes_no_bit():
    up, down, weight = torch.randn(300, 5), torch.randn(5, 200), torch.randn(300, 200)
    state = {"weight": weight, "lora_up": up, "lora_down": down}
    one, before = merged(state), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert is_same(merged(state), one)
    finally:
        torch.set_num_threads(before)


def test_low_rank_changes_are_kept_as_their_factors():
    state = state_of(update="lora", rank=1)
    changes = difference(state_of(), state)
    assert changes.keys() == {name for name in state if "lora_" in name}
    assert is_same(put_together(state_of(), changes), merged(state))


def test_what_does_not_differ_is_not_kept():
    assert difference(state_of(), state_of()) == {}
    state = state_of(update="lora", rank=1)
    for name in state:
        if name.endswith("lora_up"):
            state[name].zero_()
    assert difference(state_of(), state) == {}


def test_factors_larger_than_their_product_are_merged():
    state = state_of(update="lora", rank=64)
    changes = difference(state_of(), state)
    assert f"{LAYER}.weight" in changes
    assert UP not in changes
    assert is_same(put_together(state_of(), changes), merged(state))


def test_a_low_rank_change_of_other_weights_than_the_parents_is_merged():
    state = state_of(update="lora", rank=1)
    state[f"{LAYER}.weight"] += 1
    changes = difference(state_of(), state)
    assert torch.equal(changes[f"{LAYER}.weight"], merged(state)[f"{LAYER}.weight"])
    assert UP not in changes
    assert is_same(put_together(state_of(), changes), merged(state))


@pytest.mark.parametrize(("before", "after"), [(0.0, -0.0), (1.0, float("nan")), (1.0, 1 + 2**-23)])
def test_a_single_bit_counts(before, after):
    parent, state = state_of(), state_of()
    parent["conv1.1.bias"][3], state["conv1.1.bias"][3] = before, after
    changes = difference(parent, state)
    assert changes.keys() == {"conv1.1.bias"}
    assert is_same(put_together(parent, changes), state)
    assert digest_of(parent) != digest_of(state)
    assert difference(state, state) == {}


def test_tensors_of_other_shapes_and_types_are_kept():
    state = state_of()
    state["conv1.0.weight"] = torch.randn(24, 5, 3, 3)
    state["conv1.1.num_batches_tracked"] += 1
    assert difference(state_of(), state).keys() == {"conv1.0.weight", "conv1.1.num_batches_tracked"}


def test_the_digest_does_not_depend_on_the_order_but_on_names_and_shapes():
    weights = {"a": torch.arange(6.0), "b": torch.ones(2)}
    assert digest_of(weights) == digest_of(dict(reversed(weights.items())))
    others = [weights | {"a": torch.arange(6.0).view(2, 3)}, {"a": weights["a"], "c": weights["b"]}]
    assert len({digest_of(each) for each in (weights, *others)}) == 3


def test_a_chain_of_differences_is_put_together(folders):
    last = {**folders.load("models:/hpt/4")}
    last["conv1.1.bias"] = last["conv1.1.bias"] + 1
    folder = folders("models:/hpt/5", last, "models:/hpt/4")
    assert load_file(folder / "delta.safetensors").keys() == {"conv1.1.bias"}
    assert is_same(dict(folders.load("models:/hpt/4")), merged(state_of(update="lora", rank=1)))
    assert is_same(dict(folders.load("models:/hpt/5")), last)
    replace_difference(folder, last)
    assert is_same(dict(load_backbone(folder, "alone")[0].state_dict()), last)
    assert sorted(file.name for file in folder.iterdir()) == ["backbone.json", "backbone.safetensors"]


def assert_refused(folders, address, message):
    with pytest.raises(HptError) as caught:
        folders.load(address)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_what_is_missing_or_was_exchanged_is_named(folders):
    folders("models:/hpt/5", state_of(update="norm"), "models:/hpt/4")
    folders(PARENT, state_of(seed=7))
    assert_refused(
        folders,
        "models:/hpt/5",
        "models:/hpt/5: its parent models:/hpt/4 is a delta of hpt version 3, whose weights are not those of then (",
    )
    (folders.find(PARENT, "") / "backbone.safetensors").unlink()
    assert_refused(
        folders, "models:/hpt/4", "models:/hpt/4: its parent models:/hpt/3: its weights are missing or damaged ("
    )


def test_without_a_registry_it_says_that_it_does_not_stand_alone(folders):
    with pytest.raises(HptError, match="^the model is a delta of hpt version 3, and does not stand alone; make a"):
        load_backbone(folders.find("models:/hpt/4", ""), "the model")
    with pytest.raises(HptError, match="^weights: .* is only the difference from another model; register the whole"):
        read_weights(folders.find("models:/hpt/4", "") / "delta.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors[UP].add_(1), " is a delta of hpt version 3, but its delta.safetensors is damaged"),
        (lambda tensors: tensors.pop(UP), ": its weights do not fit its backbone.json"),
        (lambda tensors: tensors.update({UP: torch.ones(1, 2)}), ": its weights do not fit its backbone.json"),
    ],
)
def test_changed_tensors_are_refused(folders, change, message):
    file = folders.find("models:/hpt/4", "") / "delta.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    assert_refused(folders, "models:/hpt/4", f"models:/hpt/4{message}")


@pytest.mark.parametrize(
    "values",
    [
        {"parent": "file:///etc/passwd"},
        {"parent": "models:/hpt/latest"},
        {"parent": "models:/a/../b/1"},
        {"parent": 3},
        {"parent_sha256": "00"},
        {"sha256": None},
        {"more": "x"},
    ],
)
def test_a_damaged_card_is_refused(folders, values):
    file = folders.find("models:/hpt/4", "") / "delta.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    assert_refused(folders, "models:/hpt/4", "models:/hpt/4: delta.json is damaged")


def test_a_version_that_would_be_its_own_parent_is_refused(folders):
    file = folders.find("models:/hpt/4", "") / "delta.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"parent": "models:/hpt/4"}))
    assert_refused(folders, "models:/hpt/4", "models:/hpt/4: delta.json is damaged, as models:/hpt/4 would be its own")
