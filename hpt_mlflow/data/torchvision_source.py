"""`torchvision:NAME`: the datasets of torchvision, with the test part that they come with."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torchvision
from PIL import Image

from hpt_mlflow.data.dataset import Dataset, content_digest
from hpt_mlflow.errors import HptError

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


class TorchvisionImages(Sequence[Image.Image]):
    """The pictures of several torchvision datasets in a row, decoded when asked for."""

    def __init__(self, parts: list[Any]) -> None:
        self.parts = parts
        self.starts = np.cumsum([0, *(len(part) for part in parts)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, i: Any) -> Any:
        part = int(np.searchsorted(self.starts, i, side="right")) - 1
        return self.parts[part][int(i - self.starts[part])][0]


def open_torchvision(name: str, root: str | None) -> Dataset:
    """Open a classification dataset of torchvision by its class name; it is downloaded where torchvision can.

    Raises:
        HptError: there is no such dataset, or its files are not there.
    """
    known = [entry for entry in torchvision.datasets.__all__ if entry[0].isupper()]
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "see the documentation of torchvision.datasets"
        raise HptError(f"data: torchvision has no dataset {name!r}; {hint}")
    build = getattr(torchvision.datasets, name)
    parameters = inspect.signature(build).parameters
    if "root" in parameters and parameters["root"].default is inspect.Parameter.empty and not root:
        raise HptError(f"data: torchvision:{name} needs --root, the folder that its files are in or are put into")
    parts, test_part = _open_parts(name, build, parameters, root)
    pictures = TorchvisionImages(parts)
    labels = np.concatenate([_labels(name, part) for part in parts])
    values = np.unique(labels)
    names = getattr(parts[0], "classes", None)
    classes = tuple(str(n) for n in names) if names and len(names) > values.max() else tuple(str(v) for v in values)
    if len(classes) == len(values):
        labels = np.searchsorted(values, labels)
    return Dataset(
        name=name.lower(),
        uri=f"torchvision:{name}",
        pictures=pictures,
        names=[f"{name}/{i}" for i in range(len(pictures))],
        labels=labels,
        classes=classes,
        digest=content_digest(labels, np.array([ord(letter) for letter in name])),
        test=None if test_part is None else np.arange(pictures.starts[test_part], len(pictures)),
    )


def _open_parts(name: str, build: Any, parameters: Any, root: str | None) -> tuple[list[Any], int | None]:
    """The parts of the dataset, test last, and the position of test, or None where it has no parts."""
    fixed = {"root": root} if "root" in parameters and root else {}
    reasons: list[str] = []
    for argument, seen, test in PARTS:
        if argument in parameters:
            try:
                parts = [_open_part(build, parameters, fixed | {argument: value}) for value in (*seen, test)]
                return parts, len(seen)
            except (RuntimeError, ValueError, OSError, TypeError) as error:
                reasons.append(str(error).splitlines()[0] if str(error) else type(error).__name__)
    try:
        return [_open_part(build, parameters, fixed)], None
    except (RuntimeError, ValueError, OSError, TypeError) as error:
        reasons.append(str(error).splitlines()[0] if str(error) else type(error).__name__)
    raise HptError(f"data: cannot open torchvision:{name} in {root}: {reasons[0]}")


def _open_part(build: Any, parameters: Any, arguments: dict[str, Any]) -> Any:
    """Open from the files that are there; download only where they are missing."""
    try:
        return build(**arguments)
    except (RuntimeError, OSError):
        if "download" not in parameters:
            raise
        return build(**arguments, download=True)


def _labels(name: str, part: Any) -> np.ndarray:
    for attribute in ("targets", "labels", "_labels", "_targets", "y"):
        values = getattr(part, attribute, None)
        if values is not None and len(values) == len(part):
            return np.asarray(values, dtype=np.int64)
    try:
        return np.array([int(part[i][1]) for i in range(len(part))], dtype=np.int64)
    except (TypeError, ValueError) as error:
        raise HptError(f"data: torchvision:{name} is not a dataset of images with one class each") from error
