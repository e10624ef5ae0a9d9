from __future__ import annotations

import csv
import shutil
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pytest
from colours import TINY, write_colours
from PIL import Image
from safetensors.numpy import save_file

import hpt_mlflow
from hpt_mlflow.data.fingerprints import UNKNOWN
from hpt_mlflow.data.sources import open_dataset
from hpt_mlflow.errors import HptError
from hpt_mlflow.settings import EvaluateSettings
from hpt_mlflow.stages import task as task_module
from hpt_mlflow.stages.task import check_unseen, label_count, prepare_task
from hpt_mlflow.tracking.registry import find_model
from hpt_mlflow.tracking.seen_images import FILE


def task_of(past, data, **settings):
    chosen = EvaluateSettings(data=str(data), device="cpu", workers=1, **settings)
    dataset = open_dataset(chosen.data)
    return chosen, dataset, prepare_task(chosen, dataset, find_model(past.model, "model", "hpt").card)


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
    monkeypatch.setattr(task_module, "SEEN_LIMIT", 1 / 12)
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


def test_a_task_reads_images_as_the_model_was_trained(past):
    for protocol, resize_to, side in (("fast", None, 32), ("paper", 37, 40), ("finetune", 37, 40)):
        _, _, task = task_of(past, past.images, protocol=protocol)
        card = find_model(past.model, "model", "hpt").card
        assert (task.reader.image_size, task.reader.resize_to) == (32, resize_to)
        assert (task.reader.statistics.mean, task.reader.statistics.std) == (card.mean, card.std)
        assert {min(image.shape[:2]) for image in task.reader.images.sample} == {min(36, side)}
        assert len(set(task.content)) == 60


def count_of(labels, train_images=200, protocol="fast"):
    return label_count(EvaluateSettings(labels=labels, protocol=protocol), train_images)


def test_labels_are_a_number_or_a_share():
    assert [count_of(text) for text in ("10", "200", "10%", "0.5%", "100%", "12.5 %")] == [
        10,
        200,
        0.1,
        0.005,
        1.0,
        0.125,
    ]
    assert [type(count_of(text)) for text in ("1", "100%")] == [int, float]


@pytest.mark.parametrize(
    ("protocol", "images", "count"),
    [("fast", 5000, None), ("paper", 5000, None), ("finetune", 5000, 1000), ("finetune", 1000, None)],
)
def test_without_a_number_all_are_learned_from_but_by_fine_tuning(protocol, images, count):
    assert count_of(None, images, protocol) == count


@pytest.mark.parametrize(
    "text", ["0", "-5", "0%", "-1%", "101%", "nan%", "inf%", "ten", "", "%", "1.5", "0.1", "1e3", "201"]
)
def test_what_is_no_number_of_labels_is_refused(text):
    with pytest.raises(HptError, match=f"^labels: .*{text}") as caught:
        count_of(text)
    assert "\n" not in str(caught.value)


def test_too_few_labels_for_the_classes_are_refused_before_a_run_is_started(past):
    with pytest.raises(HptError, match="2 images cannot hold one of each of 3 classes"):
        hpt_mlflow.evaluate(data=str(past.images), model=past.model, labels="2")
    assert len(mlflow.search_runs(search_all_experiments=True, output_format="list")) == 1


def test_unreadable_images_that_leave_a_class_empty_are_refused(past, tmp_path):
    images = write_colours(tmp_path / "images", count=400, seed=1)
    (images / "grey").mkdir()
    for i in range(3):
        Image.new("L", (8, 8), i).save(images / "grey" / f"{i}.png")
    dataset = open_dataset(str(images))
    grey = [i for i in dataset.split(0).train if dataset.names[i].startswith("grey")]
    for i in grey:
        dataset.pictures[i].write_bytes(b"")
    with pytest.raises(HptError, match="the class 'grey' of images is in .* but not in train"):
        task_of(past, images)
