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


def test_bdd100k_with_labels_of_2020(bdd100k):
    (bdd100k / "labels/det_20").mkdir()
    before = opened("bdd100k", bdd100k)
    for part in ("train", "val"):
        shutil.move(bdd100k / f"labels/bdd100k_labels_images_{part}.json", bdd100k / f"labels/det_20/det_{part}.json")
    assert opened("bdd100k", bdd100k).digest == before.digest


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
