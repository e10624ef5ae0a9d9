"""Datasets of driving scenes, on small folders of the layouts that they unpack to."""

import shutil

import pytest
from paper_checks import assert_refused, classes_of, held_out, opened, together


def bdd_frame(name, weather):
    box = {"category": "car", "box2d": {"x1": 1, "y1": 2, "x2": 3, "y2": 4}}
    attributes = {"weather": weather, "scene": "highway", "timeofday": "night"}
    return {"name": name, "attributes": attributes, "labels": [box]}


@pytest.fixture
def bdd100k(unpacked):
    return unpacked(
        [f"images/100k/{name}.jpg" for name in ("train/a", "train/b", "train/c", "val/d", "test/e")],
        {
            "labels/bdd100k_labels_images_train.json": [
                bdd_frame("b.jpg", "foggy"),
                bdd_frame("a.jpg", "rainy"),
                bdd_frame("c.jpg", "undefined"),
            ],
            "labels/bdd100k_labels_images_val.json": [bdd_frame("d.jpg", "partly cloudy")],
        },
    )


@pytest.fixture
def viper(unpacked):
    return unpacked(
        [f"train/img/{name}.jpg" for name in ("000/000_00001", "000/000_00002", "001/001_00001")]
        + ["val/img/000/000_00001.jpg", "test/img/002/002_00001.jpg"]
    )


def test_bdd100k_is_read_by_the_weather(bdd100k):
    dataset = opened("bdd100k", bdd100k)
    assert classes_of(dataset) == {
        "images/100k/train/a.jpg": "rainy",
        "images/100k/train/b.jpg": "foggy",
        "images/100k/val/d.jpg": "partly cloudy",
    }
    assert len(dataset.classes) == 6
    assert held_out(dataset) == {"images/100k/val/d.jpg"}


@pytest.mark.parametrize("place", ["labels/det_20/det_{}.json", "labels/detection20/det_v2_{}_release.json"])
def test_bdd100k_with_labels_of_2020(bdd100k, place):
    before = opened("bdd100k", bdd100k)
    for part in ("train", "val"):
        file = bdd100k / place.format(part)
        file.parent.mkdir(exist_ok=True)
        shutil.move(bdd100k / f"labels/bdd100k_labels_images_{part}.json", file)
    assert opened("bdd100k", bdd100k).digest == before.digest


def bdd_of_berkeley(unpacked, images, labels):
    """Images and one JSON file for each, in folders of their own or in one."""
    weather = {"train/a": "rainy", "train/b": "foggy", "train/c": "undefined", "val/d": "snowy", "test/e": "clear"}
    files = {}
    for name, value in weather.items():
        objects = [{"category": "car", "attributes": {"occluded": False}, "box2d": {"x1": 1}}]
        attributes = {"weather": value, "scene": "highway", "timeofday": "night"}
        frames = [{"timestamp": 10000, "objects": objects}]
        files[f"{labels}/{name}.json"] = {"name": name.split("/")[1], "frames": frames, "attributes": attributes}
    return unpacked([f"{images}/{name}.jpg" for name in weather], files)


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("100k", "100k"),
        ("100k", "bdd100k_labels/100k"),
        ("bdd100k_images_100k/100k", "bdd100k_labels/100k"),
        ("bdd100k_images_100k/100k", "100k"),
        ("images/100k", "labels/100k"),
    ],
)
def test_bdd100k_opens_as_the_archives_of_berkeley_unpack(unpacked, images, labels):
    dataset = opened("bdd100k", bdd_of_berkeley(unpacked, images, labels))
    assert classes_of(dataset) == {
        f"{images}/train/a.jpg": "rainy",
        f"{images}/train/b.jpg": "foggy",
        f"{images}/val/d.jpg": "snowy",
    }
    assert held_out(dataset) == {f"{images}/val/d.jpg"}


def test_bdd100k_names_a_file_of_one_image_that_is_none(unpacked):
    root = bdd_of_berkeley(unpacked, "100k", "100k")
    (root / "100k/train/b.json").write_text('{"name": "b", "frames": []}')
    assert_refused("bdd100k", root, "b.json")


def test_bdd100k_without_labels_is_refused(bdd100k):
    (bdd100k / "labels/bdd100k_labels_images_val.json").unlink()
    assert_refused("bdd100k", bdd100k, "no labels of val", "labels/bdd100k_labels_images_val.json")


def test_bdd100k_of_kaggle_has_folders_within_train(unpacked):
    images = "bdd100k/bdd100k/images/100k"
    labels = "bdd100k_labels_release/bdd100k/labels/bdd100k_labels_images"
    root = unpacked(
        [f"{images}/{name}.jpg" for name in ("train/a", "train/trainA/b", "val/d")],
        {
            f"{labels}_train.json": [bdd_frame("a.jpg", "rainy"), bdd_frame("b.jpg", "foggy")],
            f"{labels}_val.json": [bdd_frame("d.jpg", "clear")],
        },
    )
    assert classes_of(opened("bdd100k", root)) == {
        f"{images}/train/a.jpg": "rainy",
        f"{images}/train/trainA/b.jpg": "foggy",
        f"{images}/val/d.jpg": "clear",
    }


@pytest.mark.parametrize(
    "content",
    [
        "[",
        "{}",
        "[3]",
        '[{"name": "a.jpg"}]',
        '[{"name": "a.jpg", "attributes": {"weather": "hail"}}]',
        '[{"name": "../a.jpg", "attributes": {"weather": "clear"}}]',
        "[" * 100000,
    ],
)
def test_bdd100k_refuses_labels_that_are_none(bdd100k, content):
    (bdd100k / "labels/bdd100k_labels_images_train.json").write_text(content)
    assert_refused("bdd100k", bdd100k, "bdd100k_labels_images_train.json")


def test_viper_without_lists_has_no_labels(viper):
    dataset = opened("viper", viper)
    assert len(dataset) == 5
    assert dataset.labels is None
    assert held_out(dataset) == {"test/img/002/002_00001.jpg"}
    assert {"train/img/000/000_00001.jpg", "train/img/000/000_00002.jpg"} in together(dataset)
    assert len(together(dataset)) == 4


def test_viper_with_lists_has_the_weather(viper):
    lists = {"train": "train/img/000/000_00001.jpg 5\ntrain/img/001/001_00001.jpg 0\n"}
    lists |= {"val": "val/img/000/000_00001.jpg 5\n", "test": "test/img/002/002_00001.jpg 0\n"}
    (viper / "meta").mkdir()
    for part, text in lists.items():
        (viper / f"meta/{part}_weather.txt").write_text(text)
    dataset = opened("viper", viper)
    assert classes_of(dataset) == {
        "train/img/000/000_00001.jpg": "5",
        "train/img/001/001_00001.jpg": "0",
        "val/img/000/000_00001.jpg": "5",
        "test/img/002/002_00001.jpg": "0",
    }
    assert held_out(dataset) == {"test/img/002/002_00001.jpg"}


def test_viper_with_some_of_its_lists_names_the_one_that_is_missing(viper):
    (viper / "meta").mkdir()
    for part in ("train", "val"):
        (viper / f"meta/{part}_weather.txt").write_text(f"{part}/img/000/000_00001.jpg 5\n")
    assert_refused("viper", viper, "test_weather.txt is missing", "train_weather.txt")


def test_viper_counts_a_frame_that_is_there_as_jpg_and_png_once(viper, write_image):
    before = opened("viper", viper)
    write_image(viper / "train/img/000/000_00001.png")
    write_image(viper / "train/img/001/001_00002.png")
    assert set(opened("viper", viper).names) == {*before.names, "train/img/001/001_00002.png"}
