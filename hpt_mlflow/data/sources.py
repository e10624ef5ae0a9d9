"""Opening a dataset from its address: `folder:` (or a path), `list:`, `csv:`, `shards:`, `paper:`, ...

`SOURCES` lists the readers. `register_source` adds one from outside the package.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import entry_points
from typing import Any

from hpt_mlflow.data.address import split_options
from hpt_mlflow.data.builtin import open_builtin
from hpt_mlflow.data.csv_source import open_csv
from hpt_mlflow.data.dataset import IN_MEMORY, Dataset
from hpt_mlflow.data.errors import data_error
from hpt_mlflow.data.folder_source import open_folder
from hpt_mlflow.data.frames import with_frames
from hpt_mlflow.data.groups import with_groups
from hpt_mlflow.data.list_source import open_list
from hpt_mlflow.data.paper_layouts import open_paper
from hpt_mlflow.data.parquet_source import open_parquet
from hpt_mlflow.data.shards_source import open_shards
from hpt_mlflow.data.stacks import with_stacks
from hpt_mlflow.data.zip_source import open_zip
from hpt_mlflow.plugins import add_to

# Installed packages may name readers under this group of entry points, each by its scheme.
ENTRY_POINTS = "hpt_mlflow.sources"
# Datasets that were passed as objects, by their address in this process.
_HELD: dict[str, Dataset] = {}


def open_dataset(data: Any, root: str | None = None, every_image: bool = False) -> Dataset:
    """Open a dataset without decoding its pictures.

    Args:
        data: an address: `folder:PATH` or a bare path, `list:FILE`, `csv:FILE`, `csv:FILE?labels=A,B` or
            `csv:FILE?label_column=A`, `shards:FOLDER` or `shards:train-{000..146}.tar`, `zip:FILE`,
            `parquet:FOLDER` or `parquet:FILE?label_column=A`, `paper:NAME?root=FOLDER`, `builtin:noto`,
            `builtin:twemoji`, `torchvision:NAME`, or that of a registered reader. At the end, `?group=...` names what
            keeps images together (see `with_groups`; of a CSV, also a column), `?stack=...` which files are bands of
            one image (see `with_stacks`), and `?bands=4,3,2` chooses bands of the pictures, counted from 1, as
            channels. Or a
            `torch.utils.data.Dataset` of images (see `open_torch_dataset`), or a `Dataset`, which is returned as it is.
        root: folder that relative paths start from, and that holds the files of `torchvision:`.
        every_image: take all images of a folder, archives or tables, even those that belong to no part or class,
            without labels.

    Raises:
        HptError: there is no such dataset, or it has no images.
    """
    if isinstance(data, Dataset):
        return data
    if not isinstance(data, str | os.PathLike):
        # Importing torch takes seconds.
        from hpt_mlflow.data.torch_source import open_torch_dataset

        return open_torch_dataset(data)
    uri = os.fspath(data)
    if not uri:
        raise data_error("no dataset is named", "write a folder, or for example builtin:twemoji")
    scheme, separator, rest = uri.partition(":")
    # One letter and a colon is a drive of Windows.
    if not separator or len(scheme) == 1 or os.path.exists(uri):
        scheme, rest = "folder", uri
    if uri in _HELD:
        return _HELD[uri]
    if uri.startswith(IN_MEMORY):
        raise data_error(f"{uri!r} was passed as an object in memory", "pass it again from Python")
    for installed in entry_points(group=ENTRY_POINTS, name=scheme) if scheme not in SOURCES else ():
        register_source(scheme, installed.load())
    if scheme not in SOURCES:
        raise data_error(f"unknown kind of dataset {scheme!r} in {uri!r}", f"use {', '.join(f'{s}:' for s in SOURCES)}")
    if not rest:
        example = "twemoji" if scheme == "builtin" else "NAME"
        raise data_error(f"{uri!r} names no dataset", f"write for example {scheme}:{example}")
    address, options = split_options(rest, scheme)
    is_whole = every_image and scheme in EVERY_IMAGE
    dataset = EVERY_IMAGE[scheme](address, root, True) if is_whole else SOURCES[scheme](address, root)
    if options.group is not None and not is_whole:
        dataset = with_groups(dataset, options.group, root)
    dataset = with_stacks(dataset, options.stack) if options.stack else with_frames(dataset)
    return _with_bands(dataset, options.bands) if options.bands else dataset


def _with_bands(dataset: Dataset, bands: tuple[int, ...]) -> Dataset:
    sign = "&" if "?" in dataset.uri else "?"
    return replace(dataset, bands=bands, uri=f"{dataset.uri}{sign}bands={','.join(map(str, bands))}")


def hold_in_memory(data: Any) -> str:
    """An address that opens, in this process, a dataset that was passed as an object.

    Raises:
        HptError: it is not a dataset.
    """
    dataset = open_dataset(data)
    uri = f"{IN_MEMORY}{dataset.name}-{len(_HELD) + 1}"
    _HELD[uri] = dataset
    return uri


def register_source(scheme: str, opener: Callable[[str, str | None], Dataset]) -> None:
    """Let `open_dataset` read `SCHEME:REST` with `opener(REST, root)`, in this process.

    Raises:
        ValueError: the scheme has fewer than two letters or a colon, or another reader has it.
    """
    if len(scheme) < 2 or ":" in scheme:
        raise ValueError(f"{scheme!r} is not a scheme; use two letters or more, without a colon")
    add_to(SOURCES, "dataset reader", scheme, opener)


def _open_torchvision(name: str, root: str | None) -> Dataset:
    # Importing torch and torchvision takes seconds and half a gigabyte.
    from hpt_mlflow.data.torchvision_source import open_torchvision

    return open_torchvision(name, root)


SOURCES: dict[str, Callable[[str, str | None], Dataset]] = {
    "folder": open_folder,
    "list": open_list,
    "csv": open_csv,
    "shards": open_shards,
    "zip": open_zip,
    "parquet": open_parquet,
    "builtin": open_builtin,
    "torchvision": _open_torchvision,
    "paper": open_paper,
}
EVERY_IMAGE: dict[str, Callable[[str, str | None, bool], Dataset]] = {
    "folder": open_folder,
    "shards": open_shards,
    "zip": open_zip,
    "parquet": open_parquet,
}
