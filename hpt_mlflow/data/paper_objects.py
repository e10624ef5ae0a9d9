"""Detection datasets, read as multi-label datasets: which objects an image shows."""

from __future__ import annotations

import logging
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from hpt_mlflow.data.catalogue import CatalogueEntry
from hpt_mlflow.data.paper_files import (
    Content,
    check_inside,
    find_base,
    first_there,
    image_names,
    parsing,
    read_json,
    read_text,
)

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
# type_id of xView to its name; its file has some objects of other numbers, which have no name.
XVIEW_CLASSES = {
    11: "Fixed-wing Aircraft", 12: "Small Aircraft", 13: "Passenger/Cargo Plane", 15: "Helicopter",
    17: "Passenger Vehicle", 18: "Small Car", 19: "Bus", 20: "Pickup Truck", 21: "Utility Truck", 23: "Truck",
    24: "Cargo Truck", 25: "Truck Tractor w/ Box Trailer", 26: "Truck Tractor", 27: "Trailer",
    28: "Truck Tractor w/ Flatbed Trailer", 29: "Truck Tractor w/ Liquid Tank", 32: "Crane Truck",
    33: "Railway Vehicle", 34: "Passenger Car", 35: "Cargo/Container Car", 36: "Flat Car", 37: "Tank car",
    38: "Locomotive", 40: "Maritime Vessel", 41: "Motorboat", 42: "Sailboat", 44: "Tugboat", 45: "Barge",
    47: "Fishing Vessel", 49: "Ferry", 50: "Yacht", 51: "Container Ship", 52: "Oil Tanker",
    53: "Engineering Vehicle", 54: "Tower crane", 55: "Container Crane", 56: "Reach Stacker",
    57: "Straddle Carrier", 59: "Mobile Crane", 60: "Dump Truck", 61: "Haul Truck", 62: "Scraper/Tractor",
    63: "Front loader/Bulldozer", 64: "Excavator", 65: "Cement Mixer", 66: "Ground Grader", 71: "Hut/Tent",
    72: "Shed", 73: "Building", 74: "Aircraft Hangar", 76: "Damaged Building", 77: "Facility",
    79: "Construction Site", 83: "Vehicle Lot", 84: "Helipad", 86: "Storage Tank", 89: "Shipping container lot",
    91: "Shipping Container", 93: "Pylon", 94: "Tower",
}  # fmt: skip

log = logging.getLogger("hpt_mlflow")


def read_xview(entry: CatalogueEntry, root: Path) -> tuple[Path, Content]:
    """Images in train_images, and their objects in xView_train.geojson, by image_id and type_id."""
    # Kaggle's copy has each archive in a folder of its own.
    files = ("xView_train.geojson", "train_labels/xView_train.geojson")
    base = find_base(entry, root, ("xView", "xview"), ["train_images", files])
    file = base / first_there(entry, base, files)
    folder = first_there(entry, base, ["train_images/train_images", "train_images"])
    names = image_names(base / folder)
    position = {name: i for i, name in enumerate(names)}
    column = {number: i for i, number in enumerate(XVIEW_CLASSES)}
    labels = np.zeros((len(names), len(column)), dtype=np.uint8)
    with parsing(entry, file):
        keys = frozenset({"features", "properties", "image_id", "type_id"})
        for feature in read_json(entry, file, keys)["features"]:
            image, kind = feature["properties"]["image_id"], feature["properties"]["type_id"]
            # It names an image that is not in the archive.
            if image in position and kind in column:
                labels[position[image], column[kind]] = 1
    return base, Content([f"{folder}/{name}" for name in names], labels, tuple(XVIEW_CLASSES.values()))


def read_coco(entry: CatalogueEntry, root: Path) -> tuple[Path, Content]:
    """Images and objects in annotations/instances_PART.json; val2014 is held out."""
    parts = ("train2014", "val2014")
    required = [*parts, *(f"annotations/instances_{part}.json" for part in parts)]
    base = find_base(entry, root, ("coco", "coco_2014"), required)
    names: list[str] = []
    blocks = []
    kinds: dict[int, str] = {}
    keys = frozenset(["images", "annotations", "categories", "id", "file_name", "image_id", "category_id", "name"])
    for part in parts:
        file = base / f"annotations/instances_{part}.json"
        with parsing(entry, file):
            content = read_json(entry, file, keys)
            of_part = {kind["id"]: str(kind["name"]) for kind in content["categories"]}
            if kinds and of_part != kinds:
                raise ValueError(f"it has other categories than {parts[0]}")
            kinds = of_part
            names += [f"{part}/{check_inside(entry, file, image['file_name'])}" for image in content["images"]]
            row = {image["id"]: i for i, image in enumerate(content["images"])}
            column = {number: i for i, number in enumerate(sorted(kinds))}
            block = np.zeros((len(content["images"]), len(column)), dtype=np.uint8)
            for thing in content["annotations"]:
                block[row[thing["image_id"]], column[thing["category_id"]]] = 1
        blocks.append(block)
    labels = np.concatenate(blocks)
    test = np.arange(len(blocks[0]), len(labels))
    return base, Content(names, labels, tuple(kinds[number] for number in sorted(kinds)), test)


def read_voc(entry: CatalogueEntry, root: Path) -> tuple[Path, Content]:
    """Lists of the parts in ImageSets/Main, and an XML file of its objects for each image."""
    test_list = "VOC2007/ImageSets/Main/test.txt"
    inner = ("VOCdevkit", "VOCdevkit/VOCdevkit")
    base = find_base(entry, root, inner, ["VOC2007/ImageSets/Main/trainval.txt", "VOC2007/JPEGImages"])
    if not (base / test_list).is_file():
        log.warning(
            "data: %s has no %s, so a test part is drawn from trainval; for the official one unpack test too",
            entry.title,
            test_list,
        )
    lists = [("VOC2007", "trainval"), ("VOC2012", "trainval"), ("VOC2007", "test")]
    names: list[str] = []
    labels: list[np.ndarray] = []
    in_test: list[bool] = []
    for year, part in lists:
        file = base / year / "ImageSets" / "Main" / f"{part}.txt"
        if not file.is_file():
            continue
        for image in read_text(entry, file).split():
            check_inside(entry, file, image)
            names.append(f"{year}/JPEGImages/{image}.jpg")
            labels.append(_voc_objects(entry, base / year / "Annotations" / f"{image}.xml"))
            in_test.append(part == "test")
    matrix = np.array(labels, dtype=np.uint8).reshape(len(names), len(VOC_CLASSES))
    return base, Content(names, matrix, VOC_CLASSES, np.flatnonzero(in_test) if any(in_test) else None)


def _voc_objects(entry: CatalogueEntry, file: Path) -> np.ndarray:
    """Which objects an XML file of Pascal VOC names, uint8 (20,)."""
    with parsing(entry, file):
        text = read_text(entry, file)
        # Entities can be nested until they fill the memory; files of Pascal VOC declare none.
        if "<!" in text:
            raise ValueError("it has a declaration")
        objects = [thing.findtext("name", "").strip() for thing in ElementTree.fromstring(text).findall("object")]
        return np.bincount([VOC_CLASSES.index(name) for name in objects], minlength=len(VOC_CLASSES)) > 0
