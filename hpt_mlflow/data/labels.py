"""Labels: numbered from their names, and checked before anything learns from them."""

from __future__ import annotations

import re
import shlex
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import replace
from unicodedata import normalize

import numpy as np

from hpt_mlflow.data.account import LeftOut
from hpt_mlflow.data.dataset import Dataset
from hpt_mlflow.data.errors import data_error
from hpt_mlflow.data.split import NO_LABEL, SMALLEST_CLASS, Split
from hpt_mlflow.errors import HptError, printable

WHOLE_NUMBER = re.compile(r"-?[0-9]+")
# Python does not read longer numbers.
MOST_DIGITS = 4000


def number_classes(values: Iterable[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels as int64 (N,) and the class names, printable and sorted; whole numbers are sorted as numbers.

    Names that differ only in how Unicode composes their characters are one class.
    """
    column = LabelColumn()
    for value in values:
        column.add(value)
    return column.ranked()


def number_groups(names: Iterable[str]) -> np.ndarray:
    """The number of the group that each image belongs to, int64 (N,), from the names of the groups."""
    return np.unique(list(names), return_inverse=True)[1].reshape(-1).astype(np.int64)


class LabelColumn:
    """The labels of images in their order. Each distinct text is kept once; an empty text means no label."""

    def __init__(self) -> None:
        self._codes = array("i")
        self._index: dict[str, int] = {}

    def add(self, label: str) -> None:
        """Append the label of the next image."""
        self._codes.append(self._index.setdefault(label, len(self._index)))

    def numbered(self, names: Sequence[str], shown: str) -> tuple[np.ndarray | None, tuple[str, ...]]:
        """As `number_classes`, or None and no classes if no image has a label.

        Args:
            names: of the images, for the message.
            shown: where the labels come from, for the message.

        Raises:
            HptError: some images have a label and some have none.
        """
        if self._index.keys() <= {""}:
            return None, ()
        if "" in self._index:
            missing = names[self._codes.index(self._index[""])]
            raise data_error(f"{shown} has labels, but not for {missing!r}", "give every image a label, or none")
        return self.ranked()

    def ranked(self) -> tuple[np.ndarray, tuple[str, ...]]:
        """The labels as int64 (N,), and the class names."""
        # File systems and keyboards differ in whether an accent is a character by itself.
        composed = [normalize("NFC", value) for value in self._index]
        classes = sorted(set(composed))
        if all(map(WHOLE_NUMBER.fullmatch, classes)) and max(map(len, classes), default=0) <= MOST_DIGITS:
            classes.sort(key=int)
        position = {name: i for i, name in enumerate(classes)}
        rank = np.array([position[value] for value in composed], dtype=np.int64)
        return rank[np.frombuffer(self._codes, np.int32)], tuple(map(printable, classes))


def check_labels(dataset: Dataset, split: Split) -> np.ndarray:
    """The labels of a dataset, if its split can be used to train, validate and test.

    Args:
        split: of this dataset, before or after unreadable images are left out.

    Returns:
        int64 (N,) or uint8 (N, L), of the whole dataset.

    Raises:
        HptError: there are no labels; a part has no images; there is one class, in the whole or in a part; a class is
            too small to be split, or missing from train; a part has no image with a label, or no image without it.
    """
    labels = dataset.labels
    if labels is None:
        why = dataset.unlabelled_because or "evaluate needs class folders, or a list with labels"
        raise data_error(f"{dataset.uri} has no labels", why)
    if not dataset.multilabel:
        _check_class_sizes(dataset, labels)
    parts = {"train": split.train, "validation": split.validation, "test": split.test}
    for name, part in parts.items():
        if not len(part):
            raise data_error(f"{dataset.name} leaves no readable images for {name}", _remedy(dataset))
    if dataset.multilabel:
        _check_labels_of_parts(dataset, labels, parts)
    else:
        _check_classes_of_parts(dataset, labels, parts)
    return labels


def _check_class_sizes(dataset: Dataset, labels: np.ndarray) -> None:
    if len(dataset.classes) < 2:
        raise data_error(f"{dataset.uri} has one class, {dataset.classes[0]!r}", "evaluate needs at least 2")
    counts = np.bincount(labels[labels != NO_LABEL], minlength=len(dataset.classes))
    small = np.flatnonzero(counts < SMALLEST_CLASS)
    if dataset.test is None and len(small):
        few = ", ".join(f"{dataset.classes[i]!r} ({counts[i]})" for i in small)
        raise data_error(
            f"these classes of {dataset.name} have too few images: {few}; a split into train, validation and test "
            f"needs {SMALLEST_CLASS} of each",
            f"add images, or {_leave_out(dataset, small)}",
        )


def _check_classes_of_parts(dataset: Dataset, labels: np.ndarray, parts: dict[str, np.ndarray]) -> None:
    for name, part in parts.items():
        unknown = np.setdiff1d(labels[part], labels[parts["train"]])
        if len(unknown):
            named = ", ".join(repr(dataset.classes[i]) for i in unknown)
            raise data_error(
                f"these classes of {dataset.name} are in {name} but not in train, so they cannot be learned: {named}",
                f"{_remedy(dataset)} for train, or {_leave_out(dataset, unknown)}",
            )
        present = np.unique(labels[part])
        if len(present) == 1:
            raise data_error(
                f"the {name} part of {dataset.name} has one class only, {dataset.classes[present[0]]!r}",
                f"{_remedy(dataset)} of other classes",
            )


def _check_labels_of_parts(dataset: Dataset, labels: np.ndarray, parts: dict[str, np.ndarray]) -> None:
    for name, part in parts.items():
        positives = labels[part].sum(axis=0, dtype=np.int64)
        # Validation scores are means over the labels that it can judge, so it may lack a rare one.
        without = np.flatnonzero((positives == 0) & (name != "validation"))
        if len(without):
            raise data_error(
                f"no image in the {name} part of {dataset.name} has the label {dataset.classes[without[0]]!r}",
                f"{_remedy(dataset)} with it, or name the other labels in csv:FILE?labels=A,B",
            )
        constant = (positives == 0) | (positives == len(part))
        every = np.flatnonzero(constant & ((name != "validation") | constant.all()))
        if len(every):
            raise data_error(
                f"all images in the {name} part of {dataset.name} are alike in the label {dataset.classes[every[0]]!r}",
                f"{_remedy(dataset)} that differ in it",
            )


def _leave_out(dataset: Dataset, labels: np.ndarray) -> str:
    names = ",".join(dataset.classes[i].replace("%", "%25").replace(",", "%2C") for i in labels)
    return f"leave them out of the evaluation with --leave-out {shlex.quote(names)}"


def leave_out_classes(dataset: Dataset, names: Sequence[str]) -> Dataset:
    """The dataset without these classes; the split of the other classes stays the same.

    Raises:
        HptError: it has no such class, or images with several labels.
    """
    names = [normalize("NFC", name) for name in names]
    if not names or dataset.labels is None:
        return dataset
    if dataset.multilabel:
        remedy = "name its labels in csv:FILE?labels=A,B instead"
        raise HptError(f"{dataset.name} is multi-label", remedy, setting="leave_out")
    unknown = next((name for name in names if name not in dataset.classes), None)
    if unknown is not None:
        remedy = f"it has {', '.join(dataset.classes)}"
        raise HptError(f"{dataset.name} has no class {unknown!r}", remedy, setting="leave_out")
    kept = [i for i, name in enumerate(dataset.classes) if name not in names]
    renumbered = np.full(len(dataset.classes) + 1, NO_LABEL, np.int64)
    renumbered[kept] = np.arange(len(kept))
    # `NO_LABEL`, -1, is the index of the last one.
    labels = renumbered[dataset.labels]
    count = int(((labels == NO_LABEL) & (dataset.labels != NO_LABEL)).sum())
    entry = LeftOut("images of classes that were to be left out", count, tuple(names[:5]))
    return replace(
        dataset,
        labels=labels,
        classes=tuple(dataset.classes[i] for i in kept),
        divided_by=dataset.labels,
        left_out=(*dataset.left_out, entry),
    )


def _remedy(dataset: Dataset) -> str:
    """What to add if a part lacks something."""
    return "add images" if dataset.groups is None else "add groups of images (patients)"
