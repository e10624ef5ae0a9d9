"""`torchvision:NAME`: the datasets of torchvision, with their own test parts."""

from __future__ import annotations

import difflib
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import torchvision
from PIL import EpsImagePlugin
from torch.utils.data import ConcatDataset

from hpt_mlflow.data.dataset import Dataset
from hpt_mlflow.data.errors import data_error
from hpt_mlflow.data.file_rows import Files
from hpt_mlflow.data.names import Names, NumberedNames
from hpt_mlflow.data.torch_source import TorchPictures, name_classes
from hpt_mlflow.errors import one_line

# How constructors name their parts: (argument, values that are not test, the value that is test).
PARTS: tuple[tuple[str, tuple[Any, ...], Any], ...] = (
    ("train", (True,), False),
    ("split", ("train", "val"), "test"),
    ("split", ("train", "valid"), "test"),
    ("split", ("trainval",), "test"),
    ("split", ("train",), "test"),
    ("split", ("train",), "val"),
    ("classes", ("train",), "val"),
)
# What constructors raise if files are missing, damaged, or need a package that is not installed.
CANNOT_OPEN = (RuntimeError, ValueError, OSError, TypeError, ImportError)
# Names under which the datasets of torchvision keep the files of their pictures.
FILE_ATTRIBUTES = ("samples", "imgs", "_samples", "_image_files", "_images", "images")


def open_torchvision(name: str, root: str | None) -> Dataset:
    """Open a classification dataset of torchvision by its class name; it is downloaded if torchvision can.

    Raises:
        HptError: there is no such dataset, or its files are missing.
    """
    name, _, root_in_name = name.partition("?root=")
    root = root_in_name or root
    root = str(Path(root).expanduser().resolve()) if root else None
    known = [entry for entry in torchvision.datasets.__all__ if entry[0].isupper()]
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "see the documentation of torchvision.datasets"
        raise data_error(f"torchvision has no dataset {name!r}", hint)
    # Some datasets open their files themselves. For EPS, whatever it is called, Pillow would run Ghostscript.
    EpsImagePlugin.gs_binary = False
    build = getattr(torchvision.datasets, name)
    parameters = inspect.signature(build).parameters
    if "root" in parameters and parameters["root"].default is inspect.Parameter.empty and not root:
        raise data_error(f"torchvision:{name} needs a folder that its files are in, or are put into", "add --root")
    parts, has_test = _open_parts(name, build, parameters, root)
    pictures = _files(parts) or TorchPictures(ConcatDataset(parts), threads=True)
    labels = np.concatenate([_labels(name, part) for part in parts])
    labels, classes = name_classes(labels, getattr(parts[0], "classes", None))
    return Dataset(
        name=name.lower(),
        uri=f"torchvision:{name}" + (f"?root={root}" if root else ""),
        pictures=pictures,
        names=NumberedNames(len(pictures), name),
        labels=labels,
        classes=classes,
        test=np.arange(len(pictures) - len(parts[-1]), len(pictures)) if has_test else None,
    )


def _open_parts(name: str, build: Any, parameters: Any, root: str | None) -> tuple[list[Any], bool]:
    """The parts of the dataset, test last, and whether there is a test part."""
    fixed = {"root": root} if "root" in parameters and root else {}
    reasons: list[str] = []
    for argument, seen, test in PARTS:
        if argument in parameters:
            try:
                parts = [_open_part(build, parameters, fixed | {argument: value}) for value in (*seen, test)]
                return parts, True
            except CANNOT_OPEN as error:
                reasons.append(one_line(error))
    try:
        return [_open_part(build, parameters, fixed)], False
    except CANNOT_OPEN as error:
        reasons.append(one_line(error))
    raise data_error(f"cannot open torchvision:{name} in {root}: {reasons[0]}")


def _open_part(build: Any, parameters: Any, arguments: dict[str, Any]) -> Any:
    """Open the files that are there; download only missing ones."""
    try:
        return build(**arguments)
    except (RuntimeError, OSError):
        if "download" not in parameters:
            raise
        return build(**arguments, download=True)


def _files(parts: list[Any]) -> Files | None:
    """The files of the pictures of all parts, or None if torchvision does not name them.

    As packed names: torchvision keeps files as Python objects, of which each worker would get its own copy.
    """
    names: list[Any] = []
    for part in parts:
        entries = next(filter(None, (getattr(part, key, None) for key in FILE_ATTRIBUTES)), ())
        names += [entry[0] if isinstance(entry, tuple) else entry for entry in entries]
    are_all = len(names) == sum(map(len, parts)) and all(isinstance(name, str | Path) for name in names)
    return Files("", Names.of(map(str, names))) if are_all else None


def _labels(name: str, part: Any) -> np.ndarray:
    try:
        for attribute in ("targets", "labels", "_labels", "_targets", "y"):
            values = getattr(part, attribute, None)
            if values is not None and len(values) == len(part):
                return np.asarray(values, dtype=np.int64)
        return np.array([int(part[i][1]) for i in range(len(part))], dtype=np.int64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise data_error(f"torchvision:{name} is not a dataset of images with one class each") from error
