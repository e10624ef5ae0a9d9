"""Versions that keep only their difference from their parent: what they hold, and how they are used."""

import shutil
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from mlflow.tracking import MlflowClient
from mlflow_runs import store_for_copies
from PIL import Image
from safetensors.torch import load_file, save_file

import hpt_mlflow
from hpt_mlflow.cli import hpt
from hpt_mlflow.errors import HptError
from hpt_mlflow.models.timm_networks import VARIANTS

NARROW = ("vit_tiny_patch16_224", {"depth": 2, "embed_dim": 48, "num_heads": 3})
NETWORK = {"arch": "timm:vit_tiny_patch16_224", "image_size": 32, "features": "mean"}
COMMON = {"batch_size": 8, "steps": 2, "milestones": "1", "precision": "float32"}
LORA = {"update": "lora", "lora_rank": 2, "judge": "none", "learning_rate": 0.01}
PARENT, DELTA, WHOLE = "models:/hpt/1", "models:/hpt/2", "models:/hpt/3"
FACTORS = {f"blocks.{i}.attn.{layer}.lora_{way}" for i in (0, 1) for layer in ("qkv", "proj") for way in ("down", "up")}


@pytest.fixture(scope="module")
def made(empty_database, tmp_path_factory):
    """A store with a parent, and the same adaptation of it as a delta and whole."""
    folder = tmp_path_factory.mktemp("made")
    rng = np.random.default_rng(0)
    for i in range(24):
        file = folder / "images" / ("cat" if i % 2 else "dog") / f"{i:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (20, 24, 3), dtype=np.uint8)).save(file)
    with pytest.MonkeyPatch.context() as patch, store_for_copies(folder, empty_database):
        patch.setitem(VARIANTS, "vit_tiny_patch16_224", NARROW)
        hpt_mlflow.pretrain(data="images", **COMMON | NETWORK)
        for store in ("delta", "whole"):
            hpt_mlflow.adapt(data="images", parent=PARENT, store=store, **COMMON | LORA)
    return folder


@pytest.fixture(autouse=True)
def past(made, store, tmp_path, monkeypatch):
    shutil.copy(made / "mlflow.db", tmp_path / "mlflow.db")
    monkeypatch.setitem(VARIANTS, "vit_tiny_patch16_224", NARROW)


@pytest.fixture
def images(made):
    return str(made / "images")


def weights(address):
    return hpt_mlflow.load_model(address).backbone.state_dict()


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def files_of(address):
    return {file.name: file for file in Path(mlflow.artifacts.download_artifacts(address)).rglob("*.*")}


def kept(address):
    return load_file(files_of(address)["delta.safetensors"]).keys()


def assert_refused(address, text):
    with pytest.raises(HptError) as caught:
        hpt_mlflow.load_model(address)
    assert str(caught.value).startswith(text)
    assert "\n" not in str(caught.value)


def test_a_delta_holds_the_factors_and_loads_as_the_whole_does():
    assert_same(weights(DELTA), weights(WHOLE))
    assert kept(DELTA) == FACTORS
    assert "backbone.safetensors" not in files_of(DELTA)
    versions = [MlflowClient().get_model_version("hpt", number) for number in "23"]
    assert [version.tags.get("hpt.store") for version in versions] == ["delta", None]
    needs = "only the difference from `models:/hpt/1`, which must not be deleted"
    assert [needs in version.description for version in versions] == [True, False]


def test_every_milestone_is_a_delta():
    run_id = MlflowClient().get_model_version("hpt", "2").run_id
    first, last = (f"runs:/{run_id}/step-{step}" for step in (1, 2))
    assert kept(first) == FACTORS
    assert_same(weights(last), weights(DELTA))
    before, after = weights(first), weights(last)
    assert len([name for name in before if not torch.equal(before[name], after[name])]) == 4


def test_a_delta_of_a_delta_loads_and_keeps_what_else_has_changed(images):
    settings = COMMON | LORA | {"data": images, "parent": DELTA, "update": "explora", "statistics": "refresh"}
    delta, whole = (hpt_mlflow.adapt(store=store, **settings).model_uri for store in ("delta", "whole"))
    assert_same(weights(delta), weights(whole))
    assert {"blocks.0.attn.qkv.lora_up", "blocks.0.norm1.weight", "blocks.1.mlp.fc1.weight"} <= kept(delta)
    assert "blocks.0.mlp.fc1.weight" not in kept(delta)
    MlflowClient().delete_model_version("hpt", "1")
    gone = "is a delta of hpt version 1, which is gone; adapt again, or use another version"
    assert_refused(DELTA, f"model: {DELTA} {gone}")
    assert_refused(delta, f"model: {delta}: its parent {DELTA} {gone}")


def test_batch_norm_statistics_that_change_are_kept(images):
    once = COMMON | {"data": images, "steps": 1}
    base = hpt_mlflow.pretrain(arch="shufflenet_v2_x0_5", image_size=32, model_name="bn", **once).model_uri
    once |= {"parent": base, "judge": "none", "statistics": "refresh"}
    delta, whole = (hpt_mlflow.adapt(store=store, update="norm", **once).model_uri for store in ("delta", "whole"))
    assert_same(weights(delta), weights(whole))
    statistics = {"conv1.1.running_mean", "conv1.1.running_var", "conv1.1.num_batches_tracked"}
    assert statistics | {"conv1.1.weight"} <= kept(delta)
    refreshed = hpt_mlflow.adapt(store="delta", update="bn-stats", **once).model_uri
    assert statistics <= kept(refreshed)
    assert not {"conv1.0.weight", "conv1.1.weight"} & kept(refreshed)


def test_a_delta_is_evaluated_exported_embedded_and_promoted_like_any_other(images, tmp_path):
    evaluated = hpt_mlflow.evaluate(data=images, model=DELTA, untrained=False)
    assert {"backbone.safetensors", "classifier.safetensors"} <= files_of(evaluated.classifier_uri).keys()
    assert_same(weights(evaluated.classifier_uri), weights(WHOLE))
    assert_same(load_file(hpt_mlflow.export(DELTA, "timm", tmp_path / "exported.safetensors")), weights(WHOLE))
    hpt_mlflow.embed(data=images, model=DELTA, to=str(tmp_path / "features.parquet"))
    assert hpt_mlflow.promote(DELTA).address == DELTA
    for name, standalone in (("here", False), ("there", True)):
        copied = hpt_mlflow.promote(DELTA, to=name, standalone=standalone).address
        assert_same(load_file(files_of(copied)["backbone.safetensors"]), weights(WHOLE))
        assert "hpt.store" not in MlflowClient().get_model_version(name, "1").tags


def test_a_delta_does_not_stand_alone_but_its_copies_do(tmp_path):
    with pytest.raises(HptError, match=r"is a delta of hpt version 1, and does not stand alone; .* hpt make-whole"):
        mlflow.pyfunc.load_model(DELTA)
    exported = hpt_mlflow.export(DELTA, "mlflow", tmp_path / "alone")
    files = {file.name: file for file in exported.rglob("*.*")}
    assert_same(load_file(files["backbone.safetensors"]), weights(WHOLE))
    assert not {"delta.json", "delta.safetensors"} & files.keys()
    expected = weights(WHOLE)
    printed = CliRunner().invoke(hpt, ["make-whole", DELTA])
    assert printed.output.strip().endswith("make-whole: models:/hpt/4")
    MlflowClient().delete_model_version("hpt", "1")
    assert_same(weights("models:/hpt/4"), expected)
    assert mlflow.pyfunc.load_model("models:/hpt/4").predict(np.zeros((1, 8, 8, 3), np.uint8)).shape == (1, 48)
    with pytest.raises(HptError, match="^model: models:/hpt/4 is whole; use it as it is"):
        hpt_mlflow.make_whole("models:/hpt/4")


def test_a_milestone_that_was_registered_by_hand_can_be_made_whole():
    run_id = MlflowClient().get_model_version("hpt", "2").run_id
    (milestone,) = (
        model
        for model in mlflow.search_logged_models(output_format="list")
        if model.name == "step-1" and model.source_run_id == run_id
    )
    MlflowClient().create_registered_model("own")
    MlflowClient().create_model_version("own", f"models:/{milestone.model_id}", model_id=milestone.model_id)
    expected = weights("models:/own/1")
    assert hpt_mlflow.make_whole("models:/own/1", to="other") == "models:/other/1"
    assert_same(load_file(files_of("models:/other/1")["backbone.safetensors"]), expected)


def test_lineage_shows_who_needs_whom():
    own, parent = hpt_mlflow.lineage(DELTA)
    assert (own.is_delta, own.deltas, parent.is_delta, parent.deltas) == (True, (), False, (DELTA,))
    lines = CliRunner().invoke(hpt, ["lineage", DELTA]).output
    assert "keeps only its difference from models:/hpt/1" in lines
    assert "must not be deleted: models:/hpt/2 needs it" in lines
    whole = hpt_mlflow.make_whole(DELTA)
    assert hpt_mlflow.lineage(whole)[0].copied_from == DELTA
    assert hpt_mlflow.lineage(PARENT)[0].deltas == (DELTA,)


def test_a_parent_with_other_weights_or_none_is_refused():
    file = files_of(PARENT)["backbone.safetensors"]
    before = file.read_bytes()
    try:
        tensors = load_file(file)
        tensors["blocks.0.norm1.weight"][0] += 1e-6
        save_file(tensors, file)
        assert_refused(
            DELTA, f"model: {DELTA} is a delta of hpt version 1, whose weights are not those of then (sha256 "
        )
        file.unlink()
        assert_refused(DELTA, f"model: {DELTA}: its parent {PARENT}: its weights are missing or damaged (")
    finally:
        file.write_bytes(before)


def test_a_parent_that_is_not_registered_is_refused_before_a_run_starts(images):
    run_id = MlflowClient().get_model_version("hpt", "1").run_id
    with pytest.raises(HptError) as caught:
        hpt_mlflow.adapt(data=images, parent=f"runs:/{run_id}/step-1", store="delta", **COMMON | LORA)
    assert str(caught.value).startswith(f"parent: runs:/{run_id}/step-1 is not a registered version, as store=delta")
    assert "register it first, by mlflow.register_model(" in str(caught.value)
    assert len(mlflow.search_runs(search_all_experiments=True, output_format="list")) == 3


def test_a_delta_of_what_changes_everywhere_is_refused():
    with pytest.raises(HptError, match="^store: with update=all every weight differs .*; use whole, or an update such"):
        hpt_mlflow.adapt(data="images", parent=PARENT, store="delta")
