"""What a dataset is: pictures, labels where there are any, and a digest that names its content."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hpt_mlflow.data.decode import Encoded
from hpt_mlflow.data.names import Files, Names
from hpt_mlflow.data.split import Split, grouped_split, stratified_split, unlabelled_split

# Of more files than this, the digest holds the sizes of a sample only.
MOST_SIZES = 1_000_000
SAMPLED_SIZES = 10_000


@dataclass(frozen=True)
class Dataset:
    """Pictures opened from one address.

    Attributes:
        name: short, for people: `twemoji`.
        uri: the address that opens it again.
        pictures: N pictures as files, arrays or Pillow images, decoded only when read.
        names: N short names, such as paths relative to the dataset.
        labels: int64 (N,) indices into `classes`; or, of a multi-label dataset, uint8 (N, L) with a column for each of
            `classes`, 1 where the image has that label; or None.
        classes: names of the classes in the order of their labels, or of the labels in the order of their columns.
        digest: 16 hexadecimal digits that change with the names, sizes and labels of the pictures.
        test: indices of the test part where the dataset comes with its own.
        groups: int64 (N,), which images belong together, such as those of one patient, and are never in two parts of a
            split; None where each stands alone.
    """

    name: str
    uri: str
    pictures: Sequence[Encoded]
    names: Sequence[str]
    labels: np.ndarray | None
    classes: tuple[str, ...]
    digest: str
    test: np.ndarray | None = field(default=None)
    groups: np.ndarray | None = field(default=None)

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def multilabel(self) -> bool:
        """Whether an image may have several labels, or none, at once."""
        return self.labels is not None and self.labels.ndim == 2

    def split(self, seed: int) -> Split:
        """The split into train, validation and test that every stage with this seed keeps to."""
        if self.labels is None:
            return unlabelled_split(len(self), self.test)
        if self.multilabel:
            return grouped_split(self.labels, seed, self.test, self.groups)
        if self.groups is not None:
            memberships = self.labels[:, None] == np.arange(len(self.classes))
            return grouped_split(memberships, seed, self.test, self.groups)
        return stratified_split(self.labels, seed, self.test)


def files_digest(names: Sequence[str], files: Sequence[Path], labels: np.ndarray | None) -> str:
    """Digest of relative names, file sizes in bytes and labels. The files themselves are not read.

    Above `MOST_SIZES` files, asking for each one's size takes minutes, and hours of a network's file system: then names
    and labels count in full, and the sizes of `SAMPLED_SIZES` files evenly spaced among them.
    """
    digest = hashlib.sha256()
    if len(names) > MOST_SIZES:
        add_names(digest, names)
        if labels is not None:
            digest.update(content_digest(labels).encode())
        for i in evenly_spaced(np.arange(len(names)), SAMPLED_SIZES):
            digest.update(f"{_size(files[i])}\n".encode())
        return digest.hexdigest()[:16]
    paths: Iterable[str | Path] = files.paths() if isinstance(files, Files) else files
    for i, (name, file) in enumerate(zip(names, paths, strict=True)):
        label = "" if labels is None else labels[i] if labels.ndim == 1 else labels[i].tobytes().hex()
        digest.update(f"{name}\0{_size(file)}\0{label}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def add_names(digest: hashlib._Hash, names: Sequence[str]) -> None:
    """Add all names and where each ends. Into how many chunks they are packed makes no difference."""
    ends = hashlib.sha256()
    before = 0
    for prefix, data, chunk_ends in Names.of(names).buffers():
        digest.update(data)
        ends.update(f"{prefix}\0".encode(errors="surrogateescape") if prefix else b"")
        ends.update((chunk_ends.astype("<i8") + before).data)
        before += len(data)
    digest.update(ends.digest())


def _size(file: str | Path) -> int:
    try:
        return os.stat(file).st_size
    except (OSError, ValueError):  # it is not there, or no file can have this name
        return -1


def evenly_spaced(indices: np.ndarray, most: int) -> np.ndarray:
    """At most so many of the indices, int64 (N,), from the first to the last."""
    return indices[np.unique(np.linspace(0, len(indices) - 1, min(most, len(indices))).astype(np.int64))]


def content_digest(*arrays: np.ndarray) -> str:
    """Digest of arrays by their bytes."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()[:16]
