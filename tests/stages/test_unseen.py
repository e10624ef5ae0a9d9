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
from safetensors.numpy import save_file

import hpt_mlflow
from hpt_mlflow.data.fingerprints import UNKNOWN
from hpt_mlflow.data.sources import open_dataset
from hpt_mlflow.errors import HptError
from hpt_mlflow.stages import unseen as unseen_module
from hpt_mlflow.stages.unseen import check_unseen
from hpt_mlflow.tracking.seen_images import FILE, SeenImages


def seen_of(past, data, model=None, **settings):
    chosen, dataset, task = task_of(past, data, **settings)
    return check_unseen(chosen, model or past.model, dataset, task)


def kept_by(run_id):
    return Path(mlflow.get_run(run_id).info.artifact_uri.removeprefix("file://")) / FILE


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
    made = hpt_mlflow.adapt(data=str(other), parent=past.model, steps=1, batch_size=8)
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
    # And so it is where the stage has not kept what it saw.
    kept_by(made.run_id).unlink()
    assert seen_of(past, tmp_path / "parts", model=made.model_uri, split_seed=1) == 0


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


def test_of_a_stage_that_kept_no_fingerprints_the_digest_must_do(past, kept, tmp_path):
    kept.unlink()
    assert seen_of(past, past.images) == 0
    assert seen_of(past, renamed(past, tmp_path / "copy", SHUFFLED)) == 0
    with pytest.raises(HptError, match="12 of 12 test images"):
        seen_of(past, past.images, split_seed=1)


def test_images_of_unknown_content_are_not_taken_for_each_other(past, kept, tmp_path):
    save_file({"fingerprints": np.array([UNKNOWN, 5])}, kept)
    chosen, dataset, task = task_of(past, write_colours(tmp_path / "other", seed=1))
    unknown = replace(task, content=np.full_like(task.content, UNKNOWN))
    assert check_unseen(chosen, past.model, dataset, unknown) == 0


def test_test_images_that_cannot_be_read_are_not_counted(past, tmp_path):
    many = write_colours(tmp_path / "many", count=300, seed=1)
    dataset = open_dataset(str(many))
    dataset.pictures[dataset.split(0).test[7]].write_bytes(b"no picture")
    _, _, task = task_of(past, many)
    assert len(task.split.test) == len(dataset.split(0).test) - 1
    assert seen_of(past, many) == 0


@pytest.fixture
def seen_of_thousand(monkeypatch):
    """How many of 1,000 test images are taken for seen, where a stage kept so many of their fingerprints."""

    def ask(kept, share, allow_seen=False):
        stage = SimpleNamespace(
            dataset_digest="other", dataset_name="birds", split_seed=0, run_id="run", stage="pretrain"
        )
        monkeypatch.setattr(unseen_module, "stages_behind", lambda model: [stage])
        seen = SeenImages(np.arange(1, 1 + kept), share)
        monkeypatch.setattr(unseen_module, "seen_images", lambda run_id: seen)
        task = SimpleNamespace(
            split=SimpleNamespace(test=np.arange(1000)), part_content=lambda part: np.arange(1, 1 + len(part))
        )
        settings = SimpleNamespace(split_seed=0, allow_seen=allow_seen)
        return check_unseen(settings, "model", SimpleNamespace(digest="own", name="cats", test=None), task)

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
