"""Readers of the X-ray datasets of the paper, which keep the images of a patient together."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np

from hpt_mlflow.data.catalogue import CatalogueEntry
from hpt_mlflow.data.csv_labels import LABEL_VALUES
from hpt_mlflow.data.csv_source import PATIENT_FOLDER
from hpt_mlflow.data.labels import number_groups
from hpt_mlflow.data.paper_files import (
    Content,
    check_inside,
    find_base,
    first_there,
    folder_names,
    image_names,
    other_layout,
    parsing,
    read_rows,
)

# The five that the authors of CheXpert evaluate on, and the paper with them.
CHEXPERT_LABELS = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
# What the archives of the full size unpack to; the first has the tables and the folder valid.
FIRST_BATCH = "CheXpert-v1.0 batch 1 (validate & csv)"
TRAIN_BATCHES = (
    "CheXpert-v1.0 batch 2 (train 1)",
    "CheXpert-v1.0 batch 3 (train 2)",
    "CheXpert-v1.0 batch 4 (train 3)",
)
# How files of Chest X-ray kids name a child: in Kaggle's copy, which numbers each kind separately and continues the
# numbers of train in test, and in Mendeley's.
KAGGLE_CHILD = re.compile(r"person[0-9]+_[a-z]+(?=_)|(?:NORMAL2-)?IM-[0-9]+(?=-)")
MENDELEY_CHILD = re.compile(r"(?:NORMAL|BACTERIA|VIRUS)-([0-9]+)-")


def read_chexpert(entry: CatalogueEntry, root: Path) -> tuple[Path, Content]:
    """Tables train.csv and valid.csv, whose paths start with the name of their folder."""
    inner = ("CheXpert-v1.0-small", "CheXpert-v1.0", "chexpertchestxrays-u20210408")
    tables = [(f"{part}.csv", f"{FIRST_BATCH}/{part}.csv") for part in ("train", "valid")]
    base = find_base(entry, root, inner, tables)
    files = [first_there(entry, base, choices) for choices in tables]
    parts = [_chexpert_rows(entry, base, base / file) for file in files]
    names = [name for part in parts for name, _ in part]
    patients = [PATIENT_FOLDER.search(name) for name in names]
    stray = next((name for name, patient in zip(names, patients, strict=True) if not patient), None)
    if stray is not None:
        raise other_layout(entry, base, f"{stray} is in no folder of a patient")
    groups = number_groups([patient.group() for patient in patients if patient])
    if files[0].startswith(FIRST_BATCH):
        names = _in_batches(entry, base, names)
    matrix = np.array([values for part in parts for _, values in part], dtype=np.uint8)
    matrix = matrix.reshape(len(names), len(CHEXPERT_LABELS))
    return base, Content(names, matrix, CHEXPERT_LABELS, np.arange(len(parts[0]), len(names)), groups)


def _chexpert_rows(entry: CatalogueEntry, base: Path, file: Path) -> list[tuple[str, list[int]]]:
    """Path, as `train/patient00001/...`, and the labels of each image of a table."""
    with parsing(entry, file):
        return [
            (check_inside(entry, file, path.partition("/")[2]), [LABEL_VALUES[value] for value in values])
            for path, *values in read_rows(entry, file, ("Path", *CHEXPERT_LABELS))
        ]


def _in_batches(entry: CatalogueEntry, base: Path, names: list[str]) -> list[str]:
    """Where images are as the four archives unpack: valid in the first, patients of train in one of the others."""
    batches = [first_there(entry, base, [batch]) for batch in TRAIN_BATCHES]
    batch_of = {patient: batch for batch in batches for patient in folder_names(base / batch)}
    placed = []
    for name in names:
        part, _, inner = name.partition("/")
        patient = inner.partition("/")[0]
        if part == "train" and patient not in batch_of:
            raise other_layout(entry, base, f"{patient} of train.csv is in none of {', '.join(batches)}")
        placed.append(f"{batch_of[patient]}/{inner}" if part == "train" else f"{FIRST_BATCH}/{name}")
    return placed


def read_chest_xray_kids(entry: CatalogueEntry, root: Path) -> tuple[Path, Content]:
    """Folders NORMAL and PNEUMONIA in train, test and, in Kaggle's copy, val; file names identify the child."""
    kinds = ("NORMAL", "PNEUMONIA")
    inner = ("chest_xray", "CellData/chest_xray", "ZhangLabData/CellData/chest_xray")
    base = find_base(entry, root, inner, [f"{part}/{kind}" for part in ("train", "test") for kind in kinds])
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
    return base, Content(names, labels, kinds, test, number_groups([_child(name) for name in names]))


def _child(name: str) -> str:
    """A name that all images of a child share, and no other images."""
    file = os.path.basename(name)
    mendeley = MENDELEY_CHILD.match(file)
    if mendeley:
        return mendeley.group(1)
    kaggle = KAGGLE_CHILD.match(file)
    return kaggle.group() if kaggle else name
