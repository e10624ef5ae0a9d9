"""Zip archives of pictures: what is in them, and the bytes of one when they are needed. Nothing is unpacked to disk.

https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT, version 6.3.10.
"""

from __future__ import annotations

import stat
import struct
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from hpt_mlflow.data.containers import Contained, Stamp, check_bytes
from hpt_mlflow.data.errors import UnreadableImageError, data_error, reading
from hpt_mlflow.errors import one_line, printable

# Section 4.3.7: the header before a member's data, whose last two numbers are lengths of its name and extra field.
LOCAL_HEADER = struct.Struct("<4s5H3I2H")
SIGNATURE = b"PK\3\4"
ENCRYPTED, STRONGLY_ENCRYPTED, MASKED = 1, 1 << 6, 1 << 13
STORED, DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
METHODS = {9: "Deflate64", zipfile.ZIP_BZIP2: "bzip2", zipfile.ZIP_LZMA: "LZMA", 93: "Zstandard", 95: "XZ"}


class Member(NamedTuple):
    """A file in an archive.

    Attributes:
        offset: of its header.
        packed, size: its bytes as they are stored, and unpacked.
        method: how they are compressed.
        crc: checksum of the unpacked bytes.
    """

    offset: int
    packed: int
    size: int
    method: int
    crc: int


class Archive(NamedTuple):
    """A zip archive.

    Attributes:
        members: by their paths, without the folder that all are in (see `open_archive`).
        links: how many symbolic links were left out.
    """

    file: Path
    stamp: Stamp
    members: dict[str, Member]
    links: int


def open_archive(file: Path) -> Archive:
    """What is in a zip archive. Of several members with one path the last one counts, as for programs that unpack it.

    If everything is in one folder, which is what packing a folder gives, paths start below it, and so on; but a folder
    that contains no other folder is kept, as it may be a class.

    Raises:
        HptError: it is not a zip archive, is damaged, in several parts, or encrypted.
    """
    shown = printable(str(file))
    members: dict[str, Member] = {}
    links = 0
    with reading(f"the archive {shown}"):
        stamp = Stamp.of(file, ".zip")
        for info in _infos(file, shown):
            path = "/".join(part for part in info.filename.replace("\\", "/").split("/") if part)
            if info.is_dir() or not path:
                continue
            if info.flag_bits & (ENCRYPTED | STRONGLY_ENCRYPTED | MASKED):
                raise data_error(f"{shown} is encrypted ({printable(path)})", "unpack it and name its folder")
            if stat.S_ISLNK(info.external_attr >> 16):
                links += 1
                continue
            members[path] = Member(info.header_offset, info.compress_size, info.file_size, info.compress_type, info.CRC)
    return Archive(file, stamp, _without_outer_folders(members), links)


def _infos(file: Path, shown: str) -> list[zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.infolist()
    except OSError:
        raise
    # Damaged directories make it raise errors of many kinds.
    except Exception as error:
        raise data_error(
            f"{shown} is not a whole .zip archive ({printable(one_line(error))})", "copy or download it again"
        ) from error


def _without_outer_folders(members: dict[str, Member]) -> dict[str, Member]:
    """The members by their paths below the folders that all of them are in, if those contain folders.

    What macOS adds to archives, and hidden files, do not count.
    """
    while True:
        counted = [path.split("/") for path in members if not _is_added(path)]
        outer = {parts[0] for parts in counted}
        if len(outer) != 1 or not all(len(parts) > 1 for parts in counted) or max(map(len, counted)) < 3:
            return members
        start = f"{outer.pop()}/"
        members = {path.removeprefix(start): member for path, member in members.items() if path.startswith(start)}


def _is_added(path: str) -> bool:
    return path.startswith("__MACOSX/") or any(part[0] == "." for part in path.split("/"))


class ZipMembers(Contained):
    """Members of archives in a row."""

    noun = "archive"

    def __init__(self, archives: Sequence[Archive], members: Iterable[tuple[int, Member]]) -> None:
        """
        Args:
            members: the number of the archive, and the member in it, of each picture.
        """
        rows = np.array([(number, *member) for number, member in members], np.int64).reshape(-1, 6)
        files, stamps = [archive.file for archive in archives], [archive.stamp for archive in archives]
        super().__init__(files, stamps, rows[:, 0], rows[:, 1].copy())
        self._fields = rows[:, 2:].copy()

    def _read(self, opened: BinaryIO, number: int, i: int) -> bytes:
        return read_member(opened, Member(int(self._places[i]), *map(int, self._fields[i])))


def read_member(opened: BinaryIO, member: Member) -> bytes:
    """The unpacked bytes of a member.

    Raises:
        UnreadableImageError: it is too large, damaged, or compressed in a way that is not read here.
    """
    check_bytes(member.size)
    check_bytes(member.packed)
    if member.method not in (STORED, DEFLATED):
        method = METHODS.get(member.method, f"method {member.method}")
        raise UnreadableImageError(f"it is compressed by {method}; pack the archive again with zip")
    packed = _packed(opened, member, member.packed)
    content = packed if member.method == STORED else _inflate(packed, member.size + 1)
    if len(content) != member.size or zlib.crc32(content) != member.crc:
        raise UnreadableImageError("it is damaged in the archive: its checksum is another one")
    return content


def first_bytes(opened: BinaryIO, member: Member, count: int) -> bytes:
    """The first bytes of a member, or fewer.

    Raises:
        UnreadableImageError: it is damaged.
    """
    # Compressed data may be longer than what it holds by a few bytes.
    packed = _packed(opened, member, min(member.packed, count + 64))
    return packed[:count] if member.method == STORED else _inflate(packed, count)


def _packed(opened: BinaryIO, member: Member, count: int) -> bytes:
    opened.seek(member.offset)
    header = opened.read(LOCAL_HEADER.size)
    if len(header) < LOCAL_HEADER.size or header[:4] != SIGNATURE:
        raise UnreadableImageError("the archive is damaged: its header is not where the archive says")
    *_, name, extra = LOCAL_HEADER.unpack(header)
    opened.seek(name + extra, 1)
    return opened.read(count)


def _inflate(packed: bytes, most: int) -> bytes:
    """The first `most` unpacked bytes, or all if there are fewer."""
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, most)
    except zlib.error as error:
        raise UnreadableImageError(f"it is damaged in the archive: {one_line(error)}") from error
