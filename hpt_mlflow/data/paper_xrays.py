"""Readers of the X-ray datasets of the paper, which keep the images of a patient together."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from hpt_mlflow.data.csv_source import LABEL_VALUES, PATIENT_FOLDER
from hpt_mlflow.data.paper_entry import CatalogueEntry
from hpt_mlflow.data.paper_files import (
    Content,
    check_inside,
    find_base,
    image_names,
    numbered_groups,
    other_layout,
    read_rows,
)

# The five that the authors of CheXpert evaluate on, and the paper with them.
CHEXPERT_LABELS = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
# How files of Chest X-ray kids name a child: in Kaggle's copy, where test is numbered anew, and in Mendeley's.
KAGGLE_CHILD = re.compile(r"person[0-9]+(?=_)|(?:NORMAL2-)?IM-[0-9]+(?=-)")
MENDELEY_CHILD = re.compile(r"(?:NORMAL|BACTERIA|VIRUS)-([0-9]+)-")


def read_chexpert(entry: CatalogueEntry, root: Path) -> tuple[Path, Content]:
    """Tables train.csv and valid.csv, whose paths start with the name of the folder that they lie in."""
    base = find_base(entry, root, ("CheXpert-v1.0-small", "CheXpert-v1.0"), ["train.csv", "valid.csv"])
    names: list[str] = []
    labels: list[list[int]] = []
    counts = []
    for file in (base / "train.csv", base / "valid.csv"):
        for path, *values in read_rows(entry, file, ("Path", *CHEXPERT_LABELS)):
            name = check_inside(entry, file, path.partition("/")[2])
            unknown = next((value for value in values if value not in LABEL_VALUES), None)
            if unknown is not None:
                raise other_layout(entry, base, f"{file.name} has the label {unknown!r} for {path}")
            names.append(name)
            labels.append([LABEL_VALUES[value] for value in values])
        counts.append(len(names))
    patients = [PATIENT_FOLDER.search(name) for name in names]
    stray = next((name for name, patient in zip(names, patients, strict=True) if not patient), None)
    if stray is not None:
        raise other_layout(entry, base, f"{stray} is in no folder of a patient")
    groups = numbered_groups([patient.group() for patient in patients if patient])
    matrix = np.array(labels, dtype=np.uint8).reshape(len(names), len(CHEXPERT_LABELS))
    return base, Content(names, matrix, CHEXPERT_LABELS, np.arange(counts[0], counts[1]), groups)


def read_chest_xray_kids(entry: CatalogueEntry, root: Path) -> tuple[Path, Content]:
    """Folders NORMAL and PNEUMONIA in train, test and, in Kaggle's copy, val; the name of a file tells the child."""
    kinds = ("NORMAL", "PNEUMONIA")
    base = find_base(entry, root, ("chest_xray",), [f"{part}/{kind}" for part in ("train", "test") for kind in kinds])
    parts = [part for part in ("test", "train", "val") if (base / part).is_dir()]
    names = [
        f"{part}/{kind}/{name}"
        for part in parts
        for kind in kinds
        if (base / part / kind).is_dir()
        for name in image_names(base / part / kind)
    ]
    labels = np.array([kinds.index(name.split("/")[1]) for name in names], dtype=np.int64)
    test = np.flatnonzero([name.startswith("test/") for name in names])
    return base, Content(names, labels, kinds, test, numbered_groups([_child(name) for name in names]))


def _child(name: str) -> str:
    """What is the same for all images of a child, and for those of no other."""
    part, _, file = name.split("/")
    mendeley = MENDELEY_CHILD.match(file)
    if mendeley:
        return mendeley.group(1)
    kaggle = KAGGLE_CHILD.match(file)
    return f"{'test' if part == 'test' else 'train'}/{kaggle.group()}" if kaggle else name
