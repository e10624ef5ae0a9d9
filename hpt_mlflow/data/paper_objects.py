"""Detection datasets, read as multi-label datasets: which objects an image shows."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from hpt_mlflow.data.catalogue import CatalogueEntry
from hpt_mlflow.data.paper_files import (
    Content,
    check_inside,
    find_base,
    first_there,
    image_names,
    other_layout,
    read_json,
    read_text,
)
from hpt_mlflow.errors import one_line

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
    found = read_json(entry, file, frozenset({"features", "properties", "image_id", "type_id"}))
    names = image_names(base / folder)
    position = {name: i for i, name in enumerate(names)}
    column = {number: i for i, number in enumerate(XVIEW_CLASSES)}
    labels = np.zeros((len(names), len(column)), dtype=np.uint8)
    for feature in _objects(entry, file, found, "features"):
        properties = feature.get("properties")
        if not isinstance(properties, dict) or not isinstance(properties.get("type_id"), int):
            raise other_layout(entry, base, f"{file.name} has an object without a type_id")
        image, kind = properties.get("image_id"), properties["type_id"]
        # It names an image that is not in the archive.
        if isinstance(image, str) and image in position and kind in column:
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
    for part in parts:
        file = base / f"annotations/instances_{part}.json"
        kept = frozenset(["images", "annotations", "categories", "id", "file_name", "image_id", "category_id", "name"])
        found = read_json(entry, file, kept)
        of_part = {
            _number(entry, file, kind, "id"): str(kind.get("name"))
            for kind in _objects(entry, file, found, "categories")
        }
        if kinds and of_part != kinds:
            raise other_layout(entry, base, f"{file.name} has other categories than {parts[0]}")
        kinds = of_part
        column = {number: i for i, number in enumerate(sorted(kinds))}
        position: dict[int, int] = {}
        for image in _objects(entry, file, found, "images"):
            position[_number(entry, file, image, "id")] = len(position)
            names.append(f"{part}/{check_inside(entry, file, str(image.get('file_name', '')))}")
        pairs = (
            (_number(entry, file, thing, "image_id"), _number(entry, file, thing, "category_id"))
            for thing in _objects(entry, file, found, "annotations")
        )
        blocks.append(_presence(entry, file, pairs, position, column))
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
    text = read_text(entry, file)
    # Entities can be nested until they fill the memory; files of Pascal VOC declare none.
    if "<!" in text:
        raise other_layout(entry, file.parent, f"{file.name} has a declaration")
    try:
        objects = [thing.findtext("name", "").strip() for thing in ElementTree.fromstring(text).findall("object")]
    except (ElementTree.ParseError, ValueError) as error:
        raise other_layout(entry, file.parent, f"{file.name} is not XML ({one_line(error)})") from error
    unknown = next((name for name in objects if name not in VOC_CLASSES), None)
    if unknown is not None:
        raise other_layout(entry, file.parent, f"{file.name} has an object {unknown!r}")
    return np.isin(VOC_CLASSES, objects).astype(np.uint8)


def _presence(
    entry: CatalogueEntry,
    file: Path,
    pairs: Iterable[tuple[int, int]],
    position: Mapping[int, int],
    column: Mapping[int, int],
) -> np.ndarray:
    """Labels uint8 (N, L) from pairs of an image and a category."""
    labels = np.zeros((len(position), len(column)), dtype=np.uint8)
    for image, kind in pairs:
        if image not in position or kind not in column:
            raise other_layout(
                entry, file.parent, f"{file.name} has an object {kind} of an image {image} that it lacks"
            )
        labels[position[image], column[kind]] = 1
    return labels


def _objects(entry: CatalogueEntry, file: Path, found: Any, key: str) -> Sequence[dict[str, Any]]:
    """The list of objects under a key of a JSON file."""
    values = found.get(key) if isinstance(found, dict) else None
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise other_layout(entry, file.parent, f"{file.name} has no list {key!r}")
    return values


def _number(entry: CatalogueEntry, file: Path, values: dict[str, Any], key: str) -> int:
    value = values.get(key)
    if not isinstance(value, int):
        raise other_layout(entry, file.parent, f"{file.name} has an entry without a number {key!r}")
    return value
