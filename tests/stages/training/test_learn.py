import mlflow
import pytest
import torch
from PIL import Image

import hpt_mlflow
from hpt_mlflow.data.sources import open_dataset
from hpt_mlflow.errors import HptError
from hpt_mlflow.models.timm_networks import VARIANTS
from hpt_mlflow.tracking.models.store import find_model

TINY = {"arch": "shufflenet_v2_x0_5", "image_size": 32, "batch_size": 8, "steps": 2, "precision": "float32"}
TINY |= {"milestones": "100%"}


def test_training_does_not_so_much_as_open_the_test_images(store, folder):
    dataset = open_dataset(str(folder))
    for index in dataset.split(0).test:
        dataset.pictures[index].write_text("no picture")
    result = hpt_mlflow.pretrain(data=str(folder), strict=True, **TINY)
    assert result.metrics["data/unreadable_images"] == 0


def test_one_unreadable_image_in_many_is_skipped_counted_and_named(store, folder):
    for i in range(140):
        Image.new("RGB", (8, 8), (i, i, i)).save(folder / "cat" / f"plain-{i}.png")
    dataset = open_dataset(str(folder))
    bad = dataset.split(0).seen[3]
    dataset.pictures[bad].write_text("no picture")
    result = hpt_mlflow.pretrain(data=str(folder), **TINY)
    assert result.metrics["data/unreadable_images"] == 1
    table = mlflow.load_table("unreadable_images.json", run_ids=[result.run_id])
    assert table["image"].tolist() == [dataset.names[bad]]
    with pytest.raises(HptError, match="none is allowed with --strict"):
        hpt_mlflow.pretrain(data=str(folder), strict=True, **TINY)


def test_an_unlabelled_folder_is_enough(store, folder):
    for file in list(folder.rglob("*.png")):
        file.rename(folder / file.name)
    result = hpt_mlflow.pretrain(data=str(folder), **TINY)
    assert result.model_uri == "models:/hpt/1"
    assert "knn/val_accuracy" not in result.metrics
    with pytest.raises(HptError, match="has no labels"):
        hpt_mlflow.evaluate(data=str(folder))


def test_a_diverging_loss_ends_the_run_failed_and_says_what_to_change(store, folder):
    with pytest.raises(HptError, match=r"the loss became .* lower learning_rate"):
        hpt_mlflow.pretrain(data=str(folder), **(TINY | {"learning_rate": 1e30, "steps": 20}))
    (run,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert run.info.status == "FAILED"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"arch": "resnet18"}, "is a shufflenet_v2_x0_5, not a resnet18"),
        ({"small_stem": True}, "was trained without it"),
        ({"batch_size": 64}, "64 is more than the 32 images"),
        ({"bn_splits": 5}, "fewer than 2 images each"),
    ],
)
def test_what_does_not_fit_the_parent_or_the_data_is_refused(past, folder, settings, words):
    with pytest.raises(HptError, match=words):
        hpt_mlflow.adapt(**({"data": str(folder), "parent": past.model, "batch_size": 8, "steps": 2} | settings))


def test_low_rank_changes_are_registered_in_the_weights(store, folder, monkeypatch):
    sizes = {"depth": 2, "embed_dim": 48, "num_heads": 3}
    monkeypatch.setitem(VARIANTS, "vit_tiny_patch16_224", ("vit_tiny_patch16_224", sizes))
    network = {"arch": "timm:vit_tiny_patch16_224", "image_size": 32, "features": "mean"}
    parent = hpt_mlflow.pretrain(data=str(folder), **(TINY | network))
    settings = TINY | {"data": str(folder), "update": "lora", "lora_rank": 2, "judge": "none", "learning_rate": 0.01}
    adapted = hpt_mlflow.adapt(**settings | {"arch": network["arch"]})
    first, last = (find_model(result.model_uri, "model", "hpt").backbone.state_dict() for result in (parent, adapted))
    changed = {name for name in first if not torch.equal(first[name], last[name])}
    assert changed == {f"blocks.{i}.attn.{layer}.weight" for i in (0, 1) for layer in ("qkv", "proj")}
    for name in changed:
        assert torch.linalg.matrix_rank(last[name] - first[name], rtol=1e-3) <= 2
    run = mlflow.get_run(adapted.run_id)
    assert (run.data.tags["hpt.update"], run.data.params["settings/lora_rank"]) == ("lora", "2")
    assert 0 < float(run.data.params["settings/learning_share"]) < 0.1
    assert "only low-rank changes of layers are learned (LoRA) of rank 2" in run.data.tags["mlflow.note.content"]


def test_batch_norm_alone_needs_batch_norm(store, folder):
    hpt_mlflow.pretrain(data=str(folder), **(TINY | {"arch": "squeezenet1_1"}))
    with pytest.raises(HptError, match="squeezenet1_1 has no BatchNorm layers"):
        hpt_mlflow.adapt(data=str(folder), update="bn")


@pytest.mark.parametrize(
    ("counts", "words"),
    [({"cat": 9}, "has one class, 'cat'"), ({"cat": 9, "dog": 2}, "too few images: 'dog' \\(2\\)")],
)
def test_labels_that_cannot_be_split_are_refused(store, tmp_path, counts, words):
    for name, count in counts.items():
        (tmp_path / "few" / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / "few" / name / f"{i}.png")
    with pytest.raises(HptError, match=words):
        hpt_mlflow.evaluate(data=str(tmp_path / "few"))
