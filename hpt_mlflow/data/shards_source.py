"""`shards:`: pictures in tar files, as webdataset packs them."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from pathlib import Path

from hpt_mlflow.data.account import LeftOut, examples_of
from hpt_mlflow.data.dataset import Dataset
from hpt_mlflow.data.errors import data_error
from hpt_mlflow.data.labels import LabelColumn
from hpt_mlflow.data.names import Names
from hpt_mlflow.data.parts import UNLABELLED, has_parts, held_out_images, parts_of
from hpt_mlflow.data.paths import resolve_path
from hpt_mlflow.data.pictures import SUFFIXES
from hpt_mlflow.data.shards import Members, Shard, open_shard
from hpt_mlflow.errors import printable

BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"(\d+)\.\.(\d+)")
# Addresses that webdataset opens by running a program or over a network.
REMOTE = re.compile(r"(pipe|https?|s3|gs|gcs|hdfs|hf|ftp|file|ais|az):", re.IGNORECASE)
MOST_SHARDS = 1_000_000


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
    files = _shard_files(address, root)
    shards = [open_shard(file) for file in files]
    folder = os.path.commonpath([os.path.abspath(file.parent) for file in files])
    shard_names = [Path(os.path.relpath(os.path.abspath(file), folder)).as_posix() for file in files]
    parts, left_out = ([None] * len(shards), []) if every_image else _by_part(shards, shard_names)
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
        uri="shards:" + "::".join(os.path.abspath(resolve_path(part, root)) for part in address.split("::")),
        pictures=pictures,
        names=names,
        labels=labels,
        classes=classes,
        test=held_out_images(parts, [len(shard.members) for shard in shards]),
        left_out=(*_left_out(shards), *left_out),
    )


def _shard_files(address: str, root: str | None) -> list[Path]:
    """The shards of an address in its order, each once; those of a folder or a pattern sorted by name."""
    found: dict[str, Path] = {}
    for part in address.split("::"):
        if REMOTE.match(part):
            raise data_error(f"{part!r} is not a file", "copy the shards to a disk and name their folder")
        whole = resolve_path(part, root)
        paths = [whole] if os.path.exists(whole) else map(Path, _expand(str(whole)))
        for path in paths:
            for file in _matches(path):
                found.setdefault(os.path.realpath(file), file)
    return list(found.values())


def _matches(path: Path) -> list[Path]:
    """The shards in a folder or of a pattern, or the path itself."""
    shown = printable(str(path))
    if os.path.isdir(path):
        inside = sorted(entry for entry in os.listdir(path) if entry[0] != ".")
        shards = [path / entry for entry in inside if entry.endswith(".tar")]
        if not shards:
            packed = next((entry for entry in inside if re.search(r"\.(tgz|tar\.\w+)$", entry)), None)
            if packed:
                raise data_error(f"no shards in {shown}", f"unpack {packed!r} and similar files to plain .tar files")
            raise data_error(f"no shards in {shown} (looked for *.tar)")
        return shards
    if os.path.exists(path):
        return [path]
    matching = sorted(map(Path, glob.glob(str(path))))
    if not matching:
        raise data_error(f"there is no shard {shown}")
    return matching


def _expand(pattern: str) -> list[str]:
    """The paths that a pattern with `{000..146}` and `{a,b}` means, in the order of a shell."""
    expanded = [""]
    rest = pattern
    while braces := BRACES.search(rest):
        limits = RANGE.fullmatch(braces[1])
        if limits:
            first, last = int(limits[1]), int(limits[2])
            padded = any(text[0] == "0" and len(text) > 1 for text in limits.groups())
            width = max(map(len, limits.groups())) if padded else 0
            step = 1 if first <= last else -1
            choices: list[str] | range = range(first, last + step, step)
        else:
            choices, width = braces[1].split(","), 0
        if len(choices) * len(expanded) > MOST_SHARDS:
            raise data_error(f"{braces[0]} in {printable(pattern)} means more than {MOST_SHARDS} shards")
        one = len(choices) == 1 and not limits
        texts = [braces[0]] if one else [str(choice).zfill(width) for choice in choices]
        expanded = [start + rest[: braces.start()] + text for start in expanded for text in texts]
        rest = rest[braces.end() :]
    return [start + rest for start in expanded]


def _left_out(shards: list[Shard]) -> list[LeftOut]:
    total: Counter[str] = Counter()
    for shard in shards:
        total.update(shard.left_out)
    return [LeftOut(what, count, ()) for what, count in total.items() if count]


def _by_part(shards: list[Shard], names: list[str]) -> tuple[list[str | None], list[LeftOut]]:
    """The part of each shard, or None for all if there are no parts; and the shards of no part.

    Args:
        names: of the shards, relative to the folder of all.
    """
    stems = [re.sub(r"[\W\d_]+$", "", name.removesuffix(".tar")) for name in names]
    known = parts_of(stems)
    if not has_parts(known.values()):
        return [None] * len(shards), []
    parts = [None if known[stem] == UNLABELLED else known[stem] for stem in stems]
    without = [name for name, part in zip(names, parts, strict=True) if part is None]
    entry = LeftOut("shards", len(without), examples_of(without), "they belong to no part to learn or test on")
    return parts, [entry] if without else []
