"""Readers of the datasets of driving scenes, BDD100K and VIPER, which are classified by the weather."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from hpt_mlflow.data.catalogue import CatalogueEntry
from hpt_mlflow.data.errors import data_error
from hpt_mlflow.data.labels import number_classes, number_groups
from hpt_mlflow.data.paper_files import (
    Content,
    check_inside,
    find_base,
    first_there,
    folder_names,
    image_names,
    labelled_lines,
    other_layout,
    parsing,
    read_json,
)
from hpt_mlflow.errors import printable

BDD_WEATHER = ("rainy", "snowy", "clear", "overcast", "partly cloudy", "foggy")
BDD_UNDEFINED = "undefined"
# Where the images of a part are, as the archives of Zurich, of Berkeley and of Kaggle's copies unpack.
BDD_IMAGES = (
    "images/100k/{}",
    "bdd100k_images_100k/100k/{}",
    "100k/{}",
    "bdd100k/bdd100k/images/100k/{}",
    "bdd100k_images_100k/bdd100k/images/100k/{}",
)
# Where the list of a part is: that of 2018, of 2020, the first release of 2020, and of 2018 in Kaggle's copies.
BDD_LISTS = (
    "labels/bdd100k_labels_images_{}.json",
    "labels/det_20/det_{}.json",
    "labels/detection20/det_v2_{}_release.json",
    "bdd100k_labels_release/bdd100k/labels/bdd100k_labels_images_{}.json",
)
# Where Berkeley's labels are, one file per image, possibly next to the images.
BDD_FILES = ("labels/100k/{}", "bdd100k_labels/100k/{}", "100k/{}")
BDD_KEYS = frozenset({"name", "attributes", "weather"})


def read_bdd100k(entry: CatalogueEntry, root: Path) -> tuple[Path, Content]:
    """Images in a folder of each part; their weather in a JSON list per part, or in a JSON file per image."""
    parts = ("train", "val")
    folders = [[place.format(part) for place in BDD_IMAGES] for part in parts]
    base = find_base(entry, root, ("bdd100k",), folders)
    names: list[str] = []
    labels: list[int] = []
    counts = []
    for part, choices in zip(parts, folders, strict=True):
        folder = first_there(entry, base, choices)
        placed = _images_within(base, folder)
        for name, weather in _weather_of_part(entry, base, part):
            if weather != BDD_UNDEFINED:
                names.append(placed.get(name, f"{folder}/{name}"))
                labels.append(BDD_WEATHER.index(weather))
        counts.append(len(names))
    return base, Content(names, np.array(labels, dtype=np.int64), BDD_WEATHER, np.arange(counts[0], counts[1]))


def read_viper(entry: CatalogueEntry, root: Path) -> tuple[Path, Content]:
    """Frames in PART/img/SEQUENCE; their weather in meta/PART_weather.txt, lines `PATH LABEL`, if there is one."""
    base = find_base(entry, root, ("VIPER", "viper"), ["train/img", "val/img"])
    lists = [base / "meta" / f"{part}_weather.txt" for part in ("train", "val", "test")]
    absent = [file.name for file in lists if not file.is_file()]
    if absent and len(absent) < len(lists):
        there = next(file.name for file in lists if file.is_file())
        raise data_error(
            f"{printable(str(base / 'meta'))} has {there}, but {absent[0]} is missing",
            f"add it, or remove the lists to open {entry.title} without labels",
        )
    if not absent:
        lines = [list(labelled_lines(entry, file)) for file in lists]
        names = [name for part in lines for name, _ in part]
        labels, classes = number_classes(label for part in lines for _, label in part)
        test = np.arange(len(names) - len(lines[-1]), len(names))
    else:
        parts = [part for part in ("train", "val", "test") if (base / part / "img").is_dir()]
        folders = [f"{part}/img/{inner}" for part in parts for inner in folder_names(base / part / "img")]
        names = [f"{folder}/{name}" for folder in folders for name in _one_per_frame(image_names(base / folder))]
        labels, classes = None, ()
        test = np.flatnonzero([name.startswith("test/") for name in names])
    sequences = number_groups([os.path.dirname(name) for name in names])
    return base, Content(names, labels, classes, test if len(test) else None, sequences)


def _one_per_frame(names: Iterable[str]) -> Iterable[str]:
    """The first of each frame's names, in order: VIPER comes as JPG and as PNG, and both may be unpacked."""
    frames: dict[str, str] = {}
    for name in names:
        frames.setdefault(os.path.splitext(name)[0], name)
    return frames.values()


def _images_within(base: Path, folder: str) -> dict[str, str]:
    """Name to path of the images in a folder, and in its folders: Kaggle's copy has some of train in train/trainA."""
    folders = [*(f"{folder}/{inner}" for inner in folder_names(base / folder)), folder]
    return {name: f"{place}/{name}" for place in folders for name in image_names(base / place)}


def _weather_of_part(entry: CatalogueEntry, base: Path, part: str) -> Iterable[tuple[str, str]]:
    """Name and weather of the images of a part of BDD100K, from its list or else from a file per image."""
    lists = [base / place.format(part) for place in BDD_LISTS]
    of_part = next((file for file in lists if file.is_file()), None)
    if of_part is not None:
        return _weather_of_list(entry, of_part)
    for folder in (base / place.format(part) for place in BDD_FILES):
        files = sorted(file for file in folder.glob("*.json") if not file.name.startswith("."))
        if files:
            return ((f"{file.stem}.jpg", _weather(entry, file, read_json(entry, file, BDD_KEYS))) for file in files)
    choices = (BDD_LISTS[0].format(part), f"{BDD_FILES[0].format(part)}/*.json")
    raise other_layout(entry, base, f"there are no labels of {part}, such as {' or '.join(choices)}")


def _weather_of_list(entry: CatalogueEntry, file: Path) -> Iterable[tuple[str, str]]:
    """Name and weather of each image of a list."""
    with parsing(entry, file):
        frames = read_json(entry, file, BDD_KEYS)
        if not isinstance(frames, list):
            raise TypeError("it is not a list of frames")
        return [(check_inside(entry, file, frame["name"]), _weather(entry, file, frame)) for frame in frames]


def _weather(entry: CatalogueEntry, file: Path, frame: Any) -> str:
    """The weather of an image, from its entry in a JSON file."""
    with parsing(entry, file):
        weather: str = frame["attributes"]["weather"]
        if weather not in (*BDD_WEATHER, BDD_UNDEFINED):
            raise ValueError(f"the weather {weather!r}")
        return weather
