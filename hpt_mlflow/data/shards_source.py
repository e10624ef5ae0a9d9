"""`shards:`: pictures in tar files, as webdataset packs them."""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path

from hpt_mlflow.data.account import LeftOut
from hpt_mlflow.data.containers import absolute, common_names, find_files, with_suffix
from hpt_mlflow.data.dataset import Dataset
from hpt_mlflow.data.errors import data_error
from hpt_mlflow.data.labels import LabelColumn
from hpt_mlflow.data.names import Names
from hpt_mlflow.data.parts import held_out_images, parts_of_files
from hpt_mlflow.data.pictures import SUFFIXES
from hpt_mlflow.data.shards import Members, Shard, open_shard
from hpt_mlflow.errors import printable

PACKED = re.compile(r"^[^.].*\.(tgz|tar\.\w+)$")


def open_shards(address: str, root: str | None, every_image: bool = False) -> Dataset:
    """Open tar files of pictures, which stay packed: each picture is read from its place in the tar.

    Consecutive files of a tar with the same folder and name up to the first dot are one sample, as in webdataset:
    `0001.jpg` is its picture, and `0001.cls` its class, a number or any text. Everything else, such as `0001.json`, is
    ignored. Either all samples have a class, or none.

    If shards are named after their part, such as `train-000.tar` or `birds-test-000.tar`, the test shards are the test
    part of the dataset, or the val shards if there are no test shards. Shards of no part are left out.

    Each shard is scanned once; its contents are cached for as long as its size and time stay the same.

    Args:
        address: a folder, for all `*.tar` in it; or files, with `{000..146}`, `{a,b}`, `*` and `?`; or several of these
            separated by `::`.
        root: folder that relative paths start from.
        every_image: take all shards, without parts and labels.

    Raises:
        HptError: there are no such shards or no pictures in them; a shard is damaged, truncated or compressed; some
            samples have a label and some have none.
    """
    files = find_files(address, root, "shard", _in_folder)
    shards = [open_shard(file) for file in files]
    folder, shard_names = common_names(files)
    stems = [name.removesuffix(".tar") for name in shard_names]
    parts, left_out = ([None] * len(shards), []) if every_image else parts_of_files(stems, "shards", shard_names)
    if left_out:
        kept = [i for i, part in enumerate(parts) if part is not None]
        shards, shard_names = [shards[i] for i in kept], [shard_names[i] for i in kept]
        parts = [parts[i] for i in kept]
    names = Names([shard.array("name") for shard in shards], [f"{name}/" for name in shard_names])
    if not len(names):
        raise data_error(f"no pictures in shards:{printable(address)} (looked for {SUFFIXES})")
    pictures = Members(shards)
    column = LabelColumn()
    for shard in () if every_image else shards:
        for label in shard.array("label").to_pylist():
            column.add(label.decode("utf-8", "surrogateescape"))
    labels, classes = column.numbered(names, f"shards:{printable(address)}")

    return Dataset(
        name=printable(Path(folder).name),
        uri=f"shards:{absolute(address, root)}",
        pictures=pictures,
        names=names,
        labels=labels,
        classes=classes,
        test=held_out_images(parts, [len(shard.members) for shard in shards]),
        left_out=(*_left_out(shards), *left_out),
    )


def _in_folder(folder: Path) -> list[Path]:
    """The shards in a folder."""
    shards = list(with_suffix(folder, ".tar"))
    if not shards:
        shown = printable(str(folder))
        packed = next((entry for entry in sorted(os.listdir(folder)) if PACKED.search(entry)), None)
        if packed:
            raise data_error(f"no shards in {shown}", f"unpack {packed!r} and similar files to plain .tar files")
        raise data_error(f"no shards in {shown} (looked for *.tar)")
    return shards


def _left_out(shards: list[Shard]) -> list[LeftOut]:
    total: Counter[str] = Counter()
    for shard in shards:
        total.update(shard.left_out)
    return [LeftOut(what, count, ()) for what, count in total.items() if count]
