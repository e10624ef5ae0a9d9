"""What a dataset is: pictures, labels if there are any, and a digest of its content."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from hpt_mlflow.data.account import LeftOut
from hpt_mlflow.data.contents import UNKNOWN, VERSION, Contents
from hpt_mlflow.data.file_rows import add_names
from hpt_mlflow.data.pictures import Encoded
from hpt_mlflow.data.split import NO_LABEL, Split, grouped_split, join_identical, stratified_split, unlabelled_split

# Up to this many images, the content of every image counts; reading more takes hours.
MOST = 1_000_000
# How the address of a dataset starts that was passed as an object, and cannot be opened again.
IN_MEMORY = "memory:"
# Above `MOST`, the contents of this many, evenly spaced, count in addition to all names and labels.
SAMPLED = 10_000


@dataclass(frozen=True)
class Dataset:
    """Pictures opened from an address or object.

    Attributes:
        name: short, for people: `twemoji`.
        uri: the address that opens it again, unless it was passed as an object in memory.
        pictures: N pictures as files, arrays or Pillow images, decoded only when read.
        names: N short names, such as paths relative to the dataset.
        labels: int64 (N,) indices into `classes`, `NO_LABEL` for images without a class; or, of a multi-label dataset,
            uint8 (N, L) with a column for each of `classes`, 1 where the image has that label; or None.
        classes: names of the classes in the order of their labels, or of the labels in the order of their columns.
        test: indices of the official test part, or None if the dataset has none.
        groups: int64 (N,), which images belong together, such as those of one patient, and are never in two parts of a
            split; None if each image is its own group.
        unlabelled_because: why there are no labels, for the user; empty if that needs no explanation.
        left_out: what was found but is not among the pictures.
        divided_by: int64 (N,), the labels that the split is made from if some classes were later left out of `labels`,
            so that the split stays the same.
        bands: which bands of the pictures become channels, counted from 1; empty for all, or red, green and blue.
    """

    name: str
    uri: str
    pictures: Sequence[Encoded]
    names: Sequence[str]
    labels: np.ndarray | None
    classes: tuple[str, ...]
    test: np.ndarray | None = field(default=None)
    groups: np.ndarray | None = field(default=None)
    unlabelled_because: str = ""
    left_out: tuple[LeftOut, ...] = ()
    divided_by: np.ndarray | None = None
    bands: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def multilabel(self) -> bool:
        """Whether an image may have several labels, or none, at once."""
        return self.labels is not None and self.labels.ndim == 2

    @cached_property
    def contents(self) -> Contents:
        """The content of each picture, read when it is needed."""
        return Contents(self.pictures)

    @cached_property
    def compared(self) -> np.ndarray:
        """The images whose contents decide the digest and the split, int64: all, or a sample of very many."""
        return evenly_spaced(np.arange(len(self)), len(self) if len(self) <= MOST else SAMPLED)

    @cached_property
    def digest(self) -> str:
        """16 hexadecimal digits that change with names, contents, labels, test part and groups."""
        digest = hashlib.sha256(f"{VERSION}\n".encode())
        add_names(digest, self.names)
        parts = (self.contents.of(self.compared), self.labels, self.test, self.groups)
        for part in parts:
            digest.update(b"none" if part is None else content_digest(part).encode())
        digest.update("\0".join(self.classes).encode())
        if self.bands:
            digest.update(f"bands {self.bands}".encode())
        return digest.hexdigest()[:16]

    @cached_property
    def identical(self) -> np.ndarray:
        """Images with the same content as an earlier one, int64, ascending."""
        contents = self.contents.of(self.compared)
        first = np.unique(contents, return_index=True)[1]
        later = np.setdiff1d(np.arange(len(contents)), first)
        return self.compared[later[contents[later] != UNKNOWN]]

    @cached_property
    def together(self) -> np.ndarray | None:
        """`groups`, with groups joined that share an identical image; None if each image is its own group."""
        if not len(self.identical):
            return self.groups
        return join_identical(len(self), self.groups, self.compared, self.contents.of(self.compared))

    def split(self, seed: int) -> Split:
        """The split into train, validation and test of every stage with this seed.

        Identical images, and those of one group, are never in two parts. If the dataset has an official test part,
        copies of its images elsewhere are in no part.
        """
        groups = self.together
        if self.labels is None:
            return unlabelled_split(len(self), self.test, groups)
        if self.multilabel:
            return grouped_split(self.labels, seed, self.test, groups)
        labels = self.labels if self.divided_by is None else self.divided_by
        labelled, unlabelled = np.flatnonzero(labels != NO_LABEL), np.flatnonzero(labels == NO_LABEL)
        parts = self._split_by_class(seed, labels, labelled, groups)
        if groups is not None:
            unlabelled = unlabelled[~np.isin(groups[unlabelled], groups[parts.test])]
        split = replace(parts, unlabelled=unlabelled)
        return split if self.divided_by is None else split.restricted(np.flatnonzero(self.labels != NO_LABEL))

    def _split_by_class(self, seed: int, labels: np.ndarray, labelled: np.ndarray, groups: np.ndarray | None) -> Split:
        """The split of the images with a label, int64 (n,); others are only for self-supervised training."""
        labels = labels[labelled]
        test = None if self.test is None else np.flatnonzero(np.isin(labelled, self.test))
        groups = None if groups is None else groups[labelled]
        if self.groups is None:
            inner = stratified_split(labels, seed, test, groups)
        else:
            inner = grouped_split(labels[:, None] == np.arange(labels.max() + 1), seed, test, groups)
        return Split(labelled[inner.train], labelled[inner.validation], labelled[inner.test])


def evenly_spaced(indices: np.ndarray, most: int) -> np.ndarray:
    """At most `most` of the indices, int64 (N,), from the first to the last."""
    return indices[np.unique(np.linspace(0, len(indices) - 1, min(most, len(indices))).astype(np.int64))]


def content_digest(*arrays: np.ndarray) -> str:
    """Digest of arrays by their bytes."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()[:16]
