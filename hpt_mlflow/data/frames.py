"""Files with several images, such as volumes and TIFFs of several pages: each image is one of the dataset."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from hpt_mlflow.data.account import LeftOut, examples_of
from hpt_mlflow.data.contents import UNKNOWN, read_once
from hpt_mlflow.data.dataset import Dataset
from hpt_mlflow.data.errors import UnreadableImageError
from hpt_mlflow.data.file_rows import Files, FramedFiles
from hpt_mlflow.data.formats import registry
from hpt_mlflow.data.names import Names

# Formats whose files hold several images, by suffix, and files of studies, which often have none or a number.
SEVERAL = re.compile(r"(?i)\.(dcm|dicom|ima|g?tiff?|npy|nii|nii\.gz)$|(^|/)[^./]+(\.[0-9]+)*$|#[0-9]+$")
# How a list or table names one of them: `scan.dcm#3`, counted from 0.
NUMBERED = re.compile(r"(.+)#([0-9]{1,9})")
# What is kept of a file: how many images it holds, and one more, as `UNKNOWN` is 0.
NO_IMAGE = 1


def with_frames(dataset: Dataset) -> Dataset:
    """The dataset with an image for each that its files hold, named `FILE#0`, `FILE#1`, ..., all in one group.

    Files without an image, such as the reports of a study, are left out. Labels are those of the file. A name `FILE#3`
    in a list or table, if there is no such file, is that image alone.
    """
    files = dataset.pictures
    # Other readers have pictures that are not files, or know what they are.
    if type(files) is not Files:
        return dataset
    suspects = files.names.matching(SEVERAL)
    if not len(suspects):
        return dataset
    names, numbers = _separate(files, suspects)
    counts = _counts(Files(files.folder, names) if names is not files.names else files, suspects)
    counts = np.where((numbers >= 0) & (counts != 0), 1, counts)
    if (counts == 1).all() and (numbers < 0).all():
        return dataset
    of_file = np.repeat(np.arange(len(files)), counts)
    first = np.cumsum(counts) - counts
    inner = np.arange(len(of_file)) - first[of_file]
    inner = np.where(numbers[of_file] >= 0, numbers[of_file], np.where(counts[of_file] > 1, inner, -1))
    return _expanded(dataset, names, of_file, inner.astype(np.int32), np.flatnonzero(counts == 0))


def _separate(files: Files, suspects: np.ndarray) -> tuple[Names, np.ndarray]:
    """The names of the files, and which image of it each name means, int64 (N,), -1 if it does not say."""
    numbers = np.full(len(files), -1, np.int64)
    found: dict[int, str] = {}
    for i in suspects.tolist():
        numbered = NUMBERED.fullmatch(files.names[i])
        if numbered and not os.path.lexists(files.path(i)):
            found[i], numbers[i] = numbered[1], int(numbered[2])
    if not found:
        return files.names, numbers
    return Names.of(found.get(i, name) for i, name in enumerate(files.names)), numbers


def _counts(files: Files, suspects: np.ndarray) -> np.ndarray:
    """How many images each file holds, int64 (N,); 1 for those that cannot be read, whose reason is told later."""
    counts = np.ones(len(files), np.int64)
    known = read_once(files, suspects, _count, "frames", "reading headers once")
    counts[suspects] = np.where(known == UNKNOWN, 1, known - NO_IMAGE)
    return counts


def _count(files: Files, i: int) -> int:
    try:
        return registry.frames(Path(files.path(i))) + NO_IMAGE
    except UnreadableImageError:
        return UNKNOWN


def _expanded(dataset: Dataset, names: Names, of_file: np.ndarray, inner: np.ndarray, without: np.ndarray) -> Dataset:
    """The dataset with these images.

    Args:
        of_file: int64 (M,), the position of each image's file, and
        inner: int32 (M,), which image of the file it is; -1 for the only one.
        without: positions of files without an image.
    """
    positions = of_file.tolist()
    repeated = Names.of(names[i] for i in positions)
    shown = Names.of(
        dataset.names[i] if number < 0 else f"{names[i]}#{number}"
        for i, number in zip(positions, inner.tolist(), strict=True)
    )
    files = dataset.pictures
    assert isinstance(files, Files)
    entry = LeftOut("files without an image", len(without), examples_of(names[i] for i in without.tolist()))
    return replace(
        dataset,
        pictures=FramedFiles(files.folder, repeated, inner),
        names=shown,
        labels=None if dataset.labels is None else dataset.labels[of_file],
        test=None if dataset.test is None else np.flatnonzero(np.isin(of_file, dataset.test)),
        groups=_of_one_file(names, positions) if dataset.groups is None else dataset.groups[of_file],
        left_out=(*dataset.left_out, entry) if len(without) else dataset.left_out,
    )


def _of_one_file(names: Names, positions: list[int]) -> np.ndarray | None:
    """The number of each image's file, int64 (M,), as slices of one volume are alike; None if each is another file."""
    first: dict[str, int] = {}
    groups = np.array([first.setdefault(names[i], i) for i in positions], np.int64)
    return groups if len(first) < len(groups) else None
