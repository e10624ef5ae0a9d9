"""Readers of the datasets of driving scenes, BDD100K and VIPER, which are classified by the weather."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from hpt_mlflow.data.labels import number_classes
from hpt_mlflow.data.paper_entry import CatalogueEntry
from hpt_mlflow.data.paper_files import (
    Content,
    check_inside,
    find_base,
    folder_names,
    image_names,
    labelled_lines,
    numbered_groups,
    other_layout,
    read_json,
)

BDD_WEATHER = ("rainy", "snowy", "clear", "overcast", "partly cloudy", "foggy")
BDD_UNDEFINED = "undefined"


def read_bdd100k(entry: CatalogueEntry, root: Path) -> tuple[Path, Content]:
    """Images in images/100k/PART, and for each part a JSON list of frames with the attribute weather."""
    base = find_base(entry, root, ("bdd100k",), ["images/100k/train", "images/100k/val", "labels"])
    names: list[str] = []
    labels: list[int] = []
    counts = []
    for part in ("train", "val"):
        choices = [f"labels/bdd100k_labels_images_{part}.json", f"labels/det_20/det_{part}.json"]
        file = next((base / choice for choice in choices if (base / choice).is_file()), None)
        if file is None:
            raise other_layout(entry, base, f"{' and '.join(choices)} are missing")
        frames = read_json(entry, file, frozenset({"name", "attributes", "weather"}))
        for name, weather in _weather_of_frames(entry, file, frames):
            if weather != BDD_UNDEFINED:
                names.append(f"images/100k/{part}/{name}")
                labels.append(BDD_WEATHER.index(weather))
        counts.append(len(names))
    return base, Content(names, np.array(labels, dtype=np.int64), BDD_WEATHER, np.arange(counts[0], counts[1]))


def read_viper(entry: CatalogueEntry, root: Path) -> tuple[Path, Content]:
    """Frames in PART/img/SEQUENCE; their weather in meta/PART_weather.txt, lines `PATH LABEL`, where there is such."""
    base = find_base(entry, root, ("VIPER", "viper"), ["train/img", "val/img"])
    lists = [base / "meta" / f"{part}_weather.txt" for part in ("train", "val", "test")]
    if all(file.is_file() for file in lists):
        lines = [list(labelled_lines(entry, file)) for file in lists]
        names = [name for part in lines for name, _ in part]
        labels, classes = number_classes(label for part in lines for _, label in part)
        test = np.arange(len(names) - len(lines[-1]), len(names))
    else:
        parts = [part for part in ("train", "val", "test") if (base / part / "img").is_dir()]
        folders = [f"{part}/img/{inner}" for part in parts for inner in folder_names(base / part / "img")]
        names = [f"{folder}/{name}" for folder in folders for name in image_names(base / folder)]
        labels, classes = None, ()
        test = np.flatnonzero([name.startswith("test/") for name in names])
    sequences = numbered_groups([os.path.dirname(name) for name in names])
    return base, Content(names, labels, classes, test if len(test) else None, sequences)


def _weather_of_frames(entry: CatalogueEntry, file: Path, frames: object) -> Iterable[tuple[str, str]]:
    """Name of the image and the weather of each frame of BDD100K."""
    if not isinstance(frames, list):
        raise other_layout(entry, file.parent, f"{file.name} is no list of frames")
    for frame in frames:
        name = frame.get("name") if isinstance(frame, dict) else None
        attributes = frame.get("attributes") if isinstance(frame, dict) else None
        weather = attributes.get("weather") if isinstance(attributes, dict) else None
        if not isinstance(name, str) or weather not in (*BDD_WEATHER, BDD_UNDEFINED):
            raise other_layout(entry, file.parent, f"{file.name} has a frame {name!r} of the weather {weather!r}")
        yield check_inside(entry, file, name), weather
