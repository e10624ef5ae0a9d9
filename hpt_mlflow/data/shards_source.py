"""`shards:`: pictures in tar files, as webdataset packs them."""

from __future__ import annotations

import glob
import hashlib
import logging
import os
import re
from collections import Counter
from pathlib import Path

import numpy as np

from hpt_mlflow.data.dataset import Dataset, add_names, content_digest
from hpt_mlflow.data.decode import SUFFIXES
from hpt_mlflow.data.labels import LabelColumn
from hpt_mlflow.data.names import Names
from hpt_mlflow.data.paths import resolve_path
from hpt_mlflow.data.shards import Members, Shard, open_shard
from hpt_mlflow.data.split import TEST_NAMES, TRAIN_NAMES, VALIDATION_NAMES
from hpt_mlflow.errors import HptError, printable

BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"(\d+)\.\.(\d+)")
# What webdataset opens by running a program or over a network.
REMOTE = re.compile(r"(pipe|https?|s3|gs|gcs|hdfs|hf|ftp|file|ais|az):", re.IGNORECASE)
MOST_SHARDS = 1_000_000

log = logging.getLogger("hpt_mlflow")


def open_shards(address: str, root: str | None) -> Dataset:
    """Open tar files of pictures, which stay packed: a picture is read from where it lies when it is asked for.

    Files of a tar that follow one another and have the same folder and name up to the first dot are one sample, as
    webdataset has it: `0001.jpg` is its picture, and `0001.cls` its class, a number or any text. Everything else, such
    as `0001.json`, is left alone. Either all samples have a class, or none.

    Where the file names of all shards start with train, val or test, and some with train, the test shards are the test
    part that the dataset comes with, or the val shards where none is for test: as of folders with these names.

    Each shard is gone through once; what is in it is kept in the cache, for as long as its size and time stay the same.

    Args:
        address: a folder, for all `*.tar` in it; or files, with `{000..146}`, `{a,b}`, `*` and `?`; or several of these
            with `::` between them.
        root: folder that relative paths start from.

    Raises:
        HptError: there are no such shards or no pictures in them; a shard is damaged, cut off or compressed; some
            samples have a label and some have none.
    """
    files = _shard_files(address, root)
    shards = [open_shard(file) for file in files]
    folder = os.path.commonpath([os.path.abspath(file.parent) for file in files])
    shard_names = [Path(os.path.relpath(os.path.abspath(file), folder)).as_posix() for file in files]
    names = Names([shard.array("name") for shard in shards], [f"{name}/" for name in shard_names])
    _tell_left_out(shards, folder)
    if not len(names):
        raise HptError(f"data: no pictures in shards:{printable(address)} (looked for {SUFFIXES})")
    pictures = Members(shards)
    column = LabelColumn()
    for shard in shards:
        column.add(shard.array("label"))
    labels, classes = column.numbered(names, f"shards:{printable(address)}")

    digest = hashlib.sha256()
    for name, shard in zip(shard_names, shards, strict=True):
        digest.update(f"{name}\0{shard.size}\0{len(shard.members)}\n".encode(errors="surrogateescape"))
    add_names(digest, names)
    held = [pictures.sizes] if labels is None else [pictures.sizes, labels]
    digest.update("\0".join((content_digest(*held), *classes)).encode())
    return Dataset(
        name=printable(Path(folder).name),
        uri="shards:" + "::".join(os.path.abspath(resolve_path(part, root)) for part in address.split("::")),
        pictures=pictures,
        names=names,
        labels=labels,
        classes=classes,
        digest=digest.hexdigest()[:16],
        test=_test_part(files, shards),
    )


def _shard_files(address: str, root: str | None) -> list[Path]:
    """The shards of an address in its order, each once; those of a folder or a pattern by name."""
    found: dict[str, Path] = {}
    for part in address.split("::"):
        if REMOTE.match(part):
            raise HptError(f"data: {part!r} is no file; copy the shards to a disk, and name their folder")
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
            why = f"; unpack {packed!r} and its like to plain .tar files" if packed else " (looked for *.tar)"
            raise HptError(f"data: no shards in {shown}{why}")
        return shards
    if os.path.exists(path):
        return [path]
    matching = sorted(map(Path, glob.glob(str(path))))
    if not matching:
        raise HptError(f"data: there is no shard {shown}")
    return matching


def _expand(pattern: str) -> list[str]:
    """The paths that a pattern with `{000..146}` and `{a,b}` stands for, in the order of a shell."""
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
            raise HptError(f"data: {braces[0]} in {printable(pattern)} stands for more than {MOST_SHARDS} shards")
        one = len(choices) == 1 and not limits
        texts = [braces[0]] if one else [str(choice).zfill(width) for choice in choices]
        expanded = [start + rest[: braces.start()] + text for start in expanded for text in texts]
        rest = rest[braces.end() :]
    return [start + rest for start in expanded]


def _tell_left_out(shards: list[Shard], folder: str) -> None:
    total: Counter[str] = Counter()
    for shard in shards:
        total.update(shard.left_out)
    told = ", ".join(f"{count} {what}" for what, count in total.items() if count)
    if told:
        log.warning("data: left out of the shards in %s: %s", printable(folder), told)


def _test_part(files: list[Path], shards: list[Shard]) -> np.ndarray | None:
    """The pictures that are held out by the names of their shards, int64; None where names say nothing of that."""
    starts = [re.match(r"[a-z]*", file.name.lower()) for file in files]
    parts = [start.group() if start else "" for start in starts]
    if not set(parts) <= TRAIN_NAMES | VALIDATION_NAMES | TEST_NAMES or not TRAIN_NAMES & set(parts):
        return None
    held_out = TEST_NAMES if TEST_NAMES & set(parts) else VALIDATION_NAMES
    if not held_out & set(parts):
        return None
    return np.flatnonzero(np.repeat([part in held_out for part in parts], [len(shard.members) for shard in shards]))
