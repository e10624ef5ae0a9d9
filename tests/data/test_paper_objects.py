"""Datasets of detection, on small folders of the layouts that they unpack to."""

import json
import logging
import shutil

import numpy as np
import pytest
from paper_checks import assert_refused, held_out, labels_of, opened

from hpt_mlflow.data.paper_objects import XVIEW_CLASSES


def instances(part, images, things):
    """A file of COCO's instances of two categories: images by id, things as (image, category)."""
    return {
        "info": {"year": 2014},
        "images": [{"id": i, "file_name": f"COCO_{part}_{i:012}.jpg", "height": 5, "width": 6} for i in images],
        "annotations": [
            {"id": n, "image_id": i, "category_id": kind, "segmentation": [[0, 0, 1, 1]], "iscrowd": 0}
            for n, (i, kind) in enumerate(things)
        ],
        "categories": [{"id": 3, "name": "car"}, {"id": 1, "name": "person"}],
    }


@pytest.fixture
def coco(unpacked):
    return unpacked(
        [
            "train2014/COCO_train2014_000000000009.jpg",
            "train2014/COCO_train2014_000000000025.jpg",
            "val2014/COCO_val2014_000000000042.jpg",
        ],
        {
            "annotations/instances_train2014.json": instances("train2014", [25, 9], [(9, 3), (9, 1), (9, 3)]),
            "annotations/instances_val2014.json": instances("val2014", [42], [(42, 1)]),
        },
    )


def voc_xml(*objects):
    inner = "".join(f"<object><name>{name}</name><part><name>head</name></part></object>" for name in objects)
    return f"<annotation><folder>VOC2007</folder><size><width>6</width></size>{inner}</annotation>"


@pytest.fixture
def voc(unpacked):
    return unpacked(
        ["VOC2007/JPEGImages/000001.jpg", "VOC2007/JPEGImages/000005.jpg", "VOC2012/JPEGImages/2008_000008.jpg"],
        {
            "VOC2007/ImageSets/Main/trainval.txt": "000005\n",
            "VOC2007/ImageSets/Main/test.txt": "000001\n",
            "VOC2012/ImageSets/Main/trainval.txt": "2008_000008\n",
            "VOC2007/Annotations/000001.xml": voc_xml("dog", "person", "person"),
            "VOC2007/Annotations/000005.xml": voc_xml("chair"),
            "VOC2012/Annotations/2008_000008.xml": voc_xml("horse", "person"),
        },
    )


@pytest.fixture
def xview(unpacked):
    things = [("10.tif", 73), ("10.tif", 18), ("10.tif", 73), ("1395.tif", 11), ("20.tif", 75)]
    features = [
        {"type": "Feature", "geometry": {}, "properties": {"image_id": i, "type_id": t, "bounds_imcoords": "1,2,3,4"}}
        for i, t in things
    ]
    return unpacked(
        ["train_images/10.tif", "train_images/20.tif", "val_images/30.tif"],
        {"xView_train.geojson": {"type": "FeatureCollection", "features": features}},
    )


def test_xview_tells_which_objects_are_in_an_image(xview):
    dataset = opened("xview", xview)
    assert labels_of(dataset) == {
        "train_images/10.tif": {"Building", "Small Car"},
        "train_images/20.tif": set(),
    }
    assert dataset.labels.dtype == np.uint8
    assert len(dataset.classes) == 60
    assert dataset.test is None


def test_xview_as_kaggle_unpacks_it(xview):
    (xview / "train_labels").mkdir()
    shutil.move(xview / "xView_train.geojson", xview / "train_labels")
    shutil.move(xview / "train_images", xview / "inner")
    (xview / "train_images").mkdir()
    shutil.move(xview / "inner", xview / "train_images/train_images")
    assert labels_of(opened("xview", xview)) == {
        "train_images/train_images/10.tif": {"Building", "Small Car"},
        "train_images/train_images/20.tif": set(),
    }


def test_xview_has_the_names_of_its_authors():
    numbers = (13, 25, 28, 29, 35)
    assert [XVIEW_CLASSES[number] for number in numbers] == [
        "Passenger/Cargo Plane",
        "Truck Tractor w/ Box Trailer",
        "Truck Tractor w/ Flatbed Trailer",
        "Truck Tractor w/ Liquid Tank",
        "Cargo/Container Car",
    ]


def test_coco_tells_which_objects_are_in_an_image(coco):
    dataset = opened("coco-2014", coco)
    assert labels_of(dataset) == {
        "train2014/COCO_train2014_000000000009.jpg": {"car", "person"},
        "train2014/COCO_train2014_000000000025.jpg": set(),
        "val2014/COCO_val2014_000000000042.jpg": {"person"},
    }
    assert dataset.classes == ("person", "car")
    assert held_out(dataset) == {"val2014/COCO_val2014_000000000042.jpg"}


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
def test_coco_refuses_a_file_that_lacks_a_list(coco, key):
    file = coco / "annotations/instances_train2014.json"
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != key}))
    assert_refused("coco-2014", coco, "instances_train2014.json", key)


def test_coco_refuses_an_object_of_no_image(coco):
    file = coco / "annotations/instances_train2014.json"
    file.write_text(json.dumps(instances("train2014", [9], [(10, 1)])))
    assert_refused("coco-2014", coco, "instances_train2014.json", "10")


def test_voc_tells_which_objects_are_in_an_image(voc):
    dataset = opened("pascal-voc", voc)
    assert labels_of(dataset) == {
        "VOC2007/JPEGImages/000001.jpg": {"dog", "person"},
        "VOC2007/JPEGImages/000005.jpg": {"chair"},
        "VOC2012/JPEGImages/2008_000008.jpg": {"horse", "person"},
    }
    assert held_out(dataset) == {"VOC2007/JPEGImages/000001.jpg"}


def test_voc_without_2012_and_without_the_test_archive(voc, caplog):
    shutil.rmtree(voc / "VOC2012")
    (voc / "VOC2007/ImageSets/Main/test.txt").unlink()
    with caplog.at_level(logging.WARNING, "hpt_mlflow"):
        dataset = opened("pascal-voc", voc)
    assert labels_of(dataset) == {"VOC2007/JPEGImages/000005.jpg": {"chair"}}
    assert dataset.test is None
    assert "VOC2007/ImageSets/Main/test.txt" in caplog.text


@pytest.mark.parametrize(
    "content",
    ["<annotation>", voc_xml("dragon"), "", '<!DOCTYPE a [<!ENTITY b "bb"><!ENTITY c "&b;&b;">]><a>&c;</a>'],
)
def test_voc_refuses_annotations_that_are_none(voc, content):
    (voc / "VOC2007/Annotations/000005.xml").write_text(content)
    assert_refused("pascal-voc", voc, "000005.xml")


def test_voc_refuses_an_image_elsewhere(voc):
    (voc / "VOC2007/ImageSets/Main/trainval.txt").write_text("../../secret")
    assert_refused("pascal-voc", voc, "../../secret")
