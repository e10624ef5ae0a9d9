from __future__ import annotations

import csv
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import mlflow
import numpy as np
import pytest
from colours import TINY, task_of, write_colours
from mlflow.tracking import MlflowClient
from mlflow_runs import store_for_copies
from PIL import Image
from safetensors.numpy import save_file

import hpt_mlflow
from hpt_mlflow.data.contents import UNKNOWN, VERSION
from hpt_mlflow.data.sources import open_dataset
from hpt_mlflow.errors import HptError
from hpt_mlflow.stages.evaluation import unseen as unseen_module
from hpt_mlflow.stages.evaluation.unseen import check_unseen
from hpt_mlflow.tracking.addresses import split_version
from hpt_mlflow.tracking.models import lineage as lineage_module
from hpt_mlflow.tracking.models.seen_images import SeenImages
from hpt_mlflow.tracking.tags import SEEN_IMAGES_FILE


def seen_of(past, data, model=None, **settings):
    chosen, dataset, task = task_of(past, data, **settings)
    return check_unseen(chosen, model or past.model, dataset, task).seen


def kept_by(run_id):
    return Path(mlflow.get_run(run_id).info.artifact_uri.removeprefix("file://")) / SEEN_IMAGES_FILE


def contents(files):
    return {file.read_bytes() for file in files}


def also_seen(past, data, split_seed=0):
    """How many test images of an address the model was trained on, by what the files hold."""
    dataset = open_dataset(str(data))
    trained_on = contents(past.dataset.pictures[i] for i in past.dataset.split(0).seen)
    return sum(dataset.pictures[i].read_bytes() in trained_on for i in dataset.split(split_seed).test)


def renamed(past, folder, order):
    """A copy of the images under other names, which put them in this order within each class."""
    for old in ("red", "green", "blue"):
        (folder / old.upper()).mkdir(parents=True)
        files = sorted((past.images / old).iterdir())
        for i, place in enumerate(order):
            shutil.copyfile(files[place], folder / old.upper() / f"img_{i:03}.png")
    return folder


SHUFFLED = np.random.default_rng(5).permutation(20)


def test_the_split_that_the_stage_kept_to_is_unseen(past):
    assert seen_of(past, past.images) == 0


def test_another_split_of_the_same_images_is_refused_with_the_seed_to_use(past):
    count = also_seen(past, past.images, split_seed=1)
    assert count > 5
    with pytest.raises(HptError) as caught:
        seen_of(past, past.images, split_seed=1)
    words = str(caught.value)
    assert f"{count} of 12 test images of images were trained on by pretrain images (run {past.run_id})" in words
    assert "use --split-seed 0, as it did" in words
    assert "--allow-seen" in words
    assert "\n" not in words


def test_whoever_wants_the_figure_all_the_same_gets_it_with_the_count(past):
    assert seen_of(past, past.images, split_seed=1, allow_seen=True) == also_seen(past, past.images, 1) > 0


def test_a_renamed_copy_in_another_order_is_recognised(past, tmp_path):
    copy = renamed(past, tmp_path / "copy", SHUFFLED)
    count = also_seen(past, copy)
    assert count > 5
    with pytest.raises(HptError, match=f"{count} of 12 test images of copy .* keep test images out of training"):
        seen_of(past, copy)
    assert seen_of(past, copy, allow_seen=True) == count


def test_a_renamed_copy_in_the_same_order_has_the_same_split(past, tmp_path):
    copy = renamed(past, tmp_path / "copy", range(20))
    # BLUE, GREEN and RED are in the order of blue, green and red.
    assert open_dataset(str(copy)).digest != past.dataset.digest
    assert seen_of(past, copy) == 0


def test_a_table_of_the_same_files_is_recognised(past, tmp_path):
    table = past_table(past, tmp_path / "images.csv")
    count = also_seen(past, f"csv:{table}")
    assert count > 5
    with pytest.raises(HptError, match=f"{count} of "):
        seen_of(past, f"csv:{table}")


def past_table(past, file):
    files = [past.dataset.pictures[i] for i in np.random.default_rng(2).permutation(60)]
    with open(file, "w", newline="") as opened:
        csv.writer(opened).writerows([("path", "class"), *((path, path.parent.name) for path in files)])
    return file


def test_a_flat_copy_without_labels_is_recognised_behind_the_model(past, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for i, file in enumerate(past.dataset.pictures):
        shutil.copyfile(file, flat / f"{59 - i:02}.png")
    made = hpt_mlflow.pretrain(data=str(flat), model_name="flat", steps=1, **TINY)
    with pytest.raises(HptError, match=r"12 of 12 test images of images were trained on by pretrain flat \(run"):
        seen_of(past, past.images, model=made.model_uri)


def test_the_whole_chain_is_looked_at(past, tmp_path):
    other = write_colours(tmp_path / "other", count=30, seed=1)
    made = hpt_mlflow.adapt(data=str(other), parent=past.model, steps=1, batch_size=8, judge="none")
    assert seen_of(past, past.images, model=made.model_uri) == 0
    assert seen_of(past, other, model=made.model_uri) == 0
    with pytest.raises(HptError, match=r"by pretrain images"):
        seen_of(past, past.images, model=made.model_uri, split_seed=1)
    with pytest.raises(HptError, match=r"by adapt other"):
        seen_of(past, other, model=made.model_uri, split_seed=1)


def test_a_test_part_that_the_dataset_comes_with_needs_no_seed(past, tmp_path):
    for part, count, seed in (("train", 30, 1), ("test", 12, 2)):
        write_colours(tmp_path / "parts" / part, count, seed)
    made = hpt_mlflow.pretrain(data=str(tmp_path / "parts"), model_name="parts", steps=1, **TINY)
    for split_seed in (0, 1):
        assert seen_of(past, tmp_path / "parts", model=made.model_uri, split_seed=split_seed) == 0


def test_a_few_images_in_common_are_counted_and_let_pass(past, tmp_path, monkeypatch):
    other = write_colours(tmp_path / "other", count=60, seed=1)
    dataset = open_dataset(str(other))
    index = dataset.split(0).test[3]
    shutil.copyfile(past.dataset.pictures[past.dataset.split(0).train[0]], dataset.pictures[index])
    with pytest.raises(HptError, match="1 of 12"):
        seen_of(past, other)
    monkeypatch.setattr(unseen_module, "SEEN_LIMIT", 1 / 12)
    assert seen_of(past, other) == 1


@pytest.fixture
def kept(past):
    """The file in which the stage has kept what it saw, restored afterwards."""
    file = kept_by(past.run_id)
    content = file.read_bytes()
    yield file
    file.write_bytes(content)


UNCHECKED = "cannot be checked, because .*--allow-seen"


def assert_unchecked(past, *words, **more):
    with pytest.raises(HptError, match=UNCHECKED) as caught:
        seen_of(past, past.images, **more)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)
    # Whoever is sure gets the figures, but no count of what nobody knows.
    assert seen_of(past, past.images, **more, allow_seen=True) is None


def test_where_a_stage_kept_nothing_it_cannot_be_checked(past, kept):
    kept.unlink()
    assert_unchecked(past, past.run_id, "not there")


@pytest.mark.parametrize("content", [b"", b"no safetensors"])
def test_where_what_it_kept_is_damaged_it_cannot_be_checked(past, kept, content):
    kept.write_bytes(content)
    assert_unchecked(past, past.run_id, "cannot be read")


def test_what_an_earlier_version_kept_does_not_count(past, kept):
    save_file({"fingerprints": np.array([5]), "share": np.ones(1)}, kept)
    assert_unchecked(past, past.run_id, "another version")


@pytest.fixture(scope="module")
def grown(pretrained, tmp_path_factory):
    """The database of a store with the past, and with a model that has learned from other images after it."""
    folder = tmp_path_factory.mktemp("grown")
    with store_for_copies(folder, pretrained[0]) as database:
        other = write_colours(folder / "other", count=30, seed=1)
        short = {"steps": 1, "batch_size": 8, "judge": "none", "precision": "float32", "milestones": "100%"}
        result = hpt_mlflow.adapt(data=str(other), parent=pretrained[1].model, **short)
    return database, result.model_uri


@pytest.fixture
def child(grown, past, tmp_path):
    """A model that has learned from other images, after the past's."""
    database, model = grown
    shutil.copy(database, tmp_path / "mlflow.db")
    return model


def test_behind_a_deleted_version_nobody_knows(past, child):
    assert seen_of(past, past.images, model=child) == 0
    MlflowClient().delete_model_version(*split_version(past.model))
    assert_unchecked(past._replace(model=child), f"{past.model} is deleted")


def test_behind_records_in_a_circle_nobody_knows(past, child, monkeypatch):
    monkeypatch.setattr(lineage_module, "LONGEST_CHAIN", 5)
    MlflowClient().set_tag(past.run_id, "hpt.parent_model", child)
    assert_unchecked(past, "more than 5 stages", model=child)


def test_a_stage_whose_origin_is_unknown_cannot_be_checked(past):
    client, (name, version) = MlflowClient(), split_version(past.model)
    for tag in ("hpt.stage", "hpt.chain"):
        client.delete_tag(past.run_id, tag)
        client.delete_model_version_tag(name, version, tag)
    assert_unchecked(past, "unknown origin")


def test_a_run_that_is_deleted_for_good_cannot_be_checked(past, child):
    child_run = MlflowClient().get_model_version(*split_version(child)).run_id
    mlflow.tracking._tracking_service.utils._get_store()._hard_delete_run(child_run)
    assert_unchecked(past, f"the run that made {child} is gone", model=child)


def test_more_than_allowed_is_refused_even_where_the_rest_is_unknown(past, child):
    MlflowClient().set_tag(past.run_id, "hpt.parent_model", "models:/gone/1")
    with pytest.raises(HptError, match="were trained on by pretrain images"):
        seen_of(past, past.images, model=child, split_seed=1)


def test_images_of_unknown_content_are_not_taken_for_each_other(past, kept, tmp_path):
    save_file({"contents": np.array([UNKNOWN, 5]), "share": np.ones(1)}, kept, {"version": str(VERSION)})
    chosen, dataset, task = task_of(past, write_colours(tmp_path / "other", seed=1))
    unknown = replace(task, content=np.full_like(task.content, UNKNOWN))
    assert check_unseen(chosen, past.model, dataset, unknown).seen == 0


def test_uncompressed_images_with_like_margins_are_told_apart(past, tmp_path):
    def write(folder, seed):
        rng = np.random.default_rng(seed)
        for i in range(60):
            pixels = np.full((64, 64, 3), 255, np.uint8)
            pixels[24:40, 24:40] = rng.integers(0, 256, (16, 16, 3))
            file = folder / "xyz"[i % 3] / f"{i}.bmp"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(file)
        return folder

    made = hpt_mlflow.pretrain(data=str(write(tmp_path / "one", 0)), model_name="margins", steps=1, **TINY)
    assert seen_of(past, write(tmp_path / "two", 1), model=made.model_uri) == 0


def test_test_images_that_cannot_be_read_are_not_counted(past, tmp_path):
    many = write_colours(tmp_path / "many", count=300, seed=1)
    dataset = open_dataset(str(many))
    dataset.pictures[dataset.split(0).test[7]].write_bytes(b"no picture")
    _, _, task = task_of(past, many)
    assert len(task.split.test) == len(dataset.split(0).test) - 1
    assert seen_of(past, many) == 0


@pytest.fixture
def seen_of_thousand(monkeypatch):
    """How many of 1,000 test images are taken for seen, where a stage kept so many of their contents."""

    def ask(kept, share, allow_seen=False):
        stage = SimpleNamespace(
            dataset_digest="other",
            dataset_name="birds",
            split_seed=0,
            run_id="run",
            stage="pretrain",
            trained=True,
            ends=True,
            unknown="",
        )
        monkeypatch.setattr(unseen_module, "lineage", lambda model, with_evaluations: [stage])
        seen = SeenImages(np.arange(1, 1 + kept), share)
        monkeypatch.setattr(unseen_module, "seen_images", lambda run_id: seen)
        task = SimpleNamespace(
            split=SimpleNamespace(test=np.arange(1000)), part_content=lambda part: np.arange(1, 1 + len(part))
        )
        settings = SimpleNamespace(split_seed=0, allow_seen=allow_seen)
        return check_unseen(settings, "model", SimpleNamespace(digest="own", name="cats", test=None), task).seen

    return ask


def test_where_all_images_were_looked_at_the_limit_is_exact(seen_of_thousand):
    assert seen_of_thousand(10, 1.0) == 10
    with pytest.raises(HptError, match="data: 11 of 1000 test images"):
        seen_of_thousand(11, 1.0)


def test_of_a_sample_the_number_is_estimated(seen_of_thousand):
    assert seen_of_thousand(50, 0.1, allow_seen=True) == 500
    assert seen_of_thousand(200, 0.1, allow_seen=True) == 1000
    assert seen_of_thousand(0, 0.1) == 0
    with pytest.raises(HptError, match="about 500 of 1000"):
        seen_of_thousand(50, 0.1)


def test_of_a_sample_more_than_chance_is_needed(seen_of_thousand):
    # A hundredth of the images, of which a tenth was looked at, is 1; two standard deviations are 1.9.
    assert seen_of_thousand(2, 0.1) == 20
    with pytest.raises(HptError, match="about 30 of 1000"):
        seen_of_thousand(3, 0.1)
