"""Tar files of pictures: where each one is, found once and cached, and its bytes when they are needed."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa

from hpt_mlflow.data.cache import cache_folder, keep
from hpt_mlflow.data.containers import Contained, Stamp, check_bytes
from hpt_mlflow.data.errors import data_error, reading
from hpt_mlflow.data.pictures import has_image_suffix
from hpt_mlflow.errors import one_line, printable

# Raise it when what is cached of a shard changes.
VERSION = 1
SCHEMA = pa.schema([("name", pa.binary()), ("offset", pa.int64()), ("size", pa.int64()), ("label", pa.binary())])
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18")
# A class is a word or a number.
LONGEST_LABEL = 1024


class Shard(NamedTuple):
    """One tar file.

    Attributes:
        file: its path.
        stamp: its size and time.
        members: a row per sample, as `SCHEMA`: the name of its picture, where the picture's bytes start and how many
            they are, and its label, empty if it has none.
        left_out: how many were left out, by kind.
    """

    file: Path
    stamp: Stamp
    members: pa.Table
    left_out: dict[str, int]

    def array(self, column: str) -> Any:
        """A column as one array."""
        return self.members[column].combine_chunks()


def open_shard(file: Path) -> Shard:
    """What is in a tar file: from the cache if it has not changed since it was scanned, which is slow.

    Raises:
        HptError: it is not a plain tar file, is truncated or damaged, or holds a sparse file.
    """
    shown = printable(str(file))
    with reading(f"the shard {shown}"):
        stamp = Stamp.of(file, ".tar")
        key = json.dumps([VERSION, *stamp]).encode()
        name = hashlib.sha256(os.fsencode(os.path.realpath(file))).hexdigest()[:32]
        kept = cache_folder() / "shards" / f"{name}.arrow"
        members = _read_kept(kept, key)
        if members is None:
            members = _scan(file, shown, key)
            _keep(kept, members)
    return Shard(file, stamp, members, json.loads(members.schema.metadata[b"left_out"]))


class Members(Contained):
    """The pictures of shards in a row."""

    noun = "shard"

    def __init__(self, shards: Sequence[Shard]) -> None:
        offsets = np.concatenate([shard.array("offset").to_numpy() for shard in shards])
        numbers = np.repeat(np.arange(len(shards)), [len(shard.members) for shard in shards])
        super().__init__([shard.file for shard in shards], [shard.stamp for shard in shards], numbers, offsets)
        self.sizes = np.concatenate([shard.array("size").to_numpy() for shard in shards])

    def _read(self, opened: BinaryIO, number: int, i: int) -> bytes:
        size = int(self.sizes[i])
        check_bytes(size)
        opened.seek(int(self._places[i]))
        return opened.read(size)


class _Samples:
    """Rows of `SCHEMA`, each put together from consecutive members with the same name up to its suffix."""

    def __init__(self) -> None:
        self.rows: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
        self.left_out = {"samples without a picture": 0, "further pictures of a sample": 0, "links": 0}
        self._key: str | None = None
        self._pictures: list[tuple[bool, str, int, int]] = []
        self._label = b""

    def add(self, member: tarfile.TarInfo, label: bytes | None) -> None:
        """Take the next file; `label` is its content if that is a label, or else None."""
        folder, slash, base = member.name.rpartition("/")
        stem, dot, suffix = base.partition(".")
        if not (stem and dot) or (stem.startswith("__") and stem.endswith("__")):
            return  # hidden, or webdataset's own
        key = folder + slash + stem
        if key != self._key:
            self.finish()
            self._key = key
        if label is not None:
            self._label = label
        elif has_image_suffix(base):
            self._pictures.append(("." in suffix, member.name, member.offset_data, member.size))

    def finish(self) -> None:
        """Close the sample that is being put together."""
        if self._pictures:
            # Of 1.jpg and 1.mask.png, whichever comes first, the picture is 1.jpg.
            _, name, offset, size = min(self._pictures, key=lambda picture: picture[0])
            row = (name.encode("utf-8", "surrogateescape"), offset, size, self._label)
            for column, value in zip(self.rows.values(), row, strict=True):
                column.append(value)
        self.left_out["samples without a picture"] += self._key is not None and not self._pictures
        self.left_out["further pictures of a sample"] += max(0, len(self._pictures) - 1)
        self._key, self._pictures, self._label = None, [], b""


def _scan(file: Path, shown: str, key: bytes) -> pa.Table:
    """Every header of a tar file."""
    samples = _Samples()
    with open(file, "rb") as opened:
        if opened.read(8).startswith(COMPRESSED):
            raise data_error(f"{shown} is compressed, so its members cannot be read", "unpack it to a plain .tar")
        opened.seek(0)
        for member in _members(opened, shown):
            if member.issparse():
                raise data_error(f"{member.name!r} in {shown} is a sparse file", "pack it without --sparse")
            if member.isreg():
                samples.add(member, _label(opened, member, shown))
            elif not member.isdir():
                samples.left_out["links"] += 1
    samples.finish()
    metadata = {b"key": key, b"left_out": json.dumps(samples.left_out).encode()}
    return pa.table(samples.rows, schema=SCHEMA.with_metadata(metadata))


def _members(opened: Any, shown: str) -> Iterator[tarfile.TarInfo]:
    """The members of a tar file up to its end mark, or up to the end of the file between two members.

    Raises:
        HptError: it ends within a member, or has something else in place of a member.
    """
    count, before = 0, -1
    try:
        with tarfile.TarFile(fileobj=opened, encoding="utf-8", errors="surrogateescape") as archive:
            while (member := archive.next()) is not None:
                # A size below zero would lead back to what has been read.
                if archive.offset <= before:
                    raise tarfile.ReadError("a member has no valid size")
                before = archive.offset
                yield member
                count += 1
                archive.members = []  # type: ignore[attr-defined]
            opened.seek(archive.offset)
            block = opened.read(tarfile.BLOCKSIZE)
    except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
        raise data_error(f"{shown} is not a whole .tar file: after {count} members, {one_line(error)}") from error
    if block.strip(b"\0"):
        raise data_error(f"{shown} is damaged or cut off after {count} members, at byte {archive.offset}")


def _label(opened: Any, member: tarfile.TarInfo, shown: str) -> bytes | None:
    """The text of a member `NAME.cls`, stripped; None for any other member."""
    if member.name.rpartition("/")[2].partition(".")[2].lower() != "cls":
        return None
    if member.size > LONGEST_LABEL:
        problem = f"{member.name!r} in {shown} has {member.size} bytes"
        raise data_error(problem, f"a label is a number or a text of at most {LONGEST_LABEL}")
    opened.seek(member.offset_data)
    text = opened.read(member.size).decode("utf-8", "surrogateescape")
    return str(text).strip().encode("utf-8", "surrogateescape")


def _keep(file: Path, members: pa.Table) -> None:
    def write(path: Path) -> None:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, members.schema) as writer:
            writer.write_table(members)

    keep(file, write)


def _read_kept(file: Path, key: bytes) -> pa.Table | None:
    """What is cached of a shard; None if that is nothing, of another version of the shard, or damaged."""
    try:
        with pa.OSFile(str(file), "rb") as source:
            members = pa.ipc.open_file(source).read_all()
        if members.schema != SCHEMA or members.schema.metadata[b"key"] != key:
            return None
        members.validate(full=True)
        return members
    # The cache is not trusted; the shard itself is still there.
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError):
        return None
