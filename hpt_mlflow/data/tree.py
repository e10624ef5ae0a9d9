"""Finds the images in a folder: the one place that decides what is an image, and counts what it leaves out."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from hpt_mlflow.data.account import MOST_EXAMPLES, LeftOut
from hpt_mlflow.data.errors import data_error
from hpt_mlflow.data.formats import registry
from hpt_mlflow.data.names import Names
from hpt_mlflow.data.pictures import IMAGE_SUFFIXES
from hpt_mlflow.errors import printable

# Picture formats that are not read here, and files that often contain pictures.
UNREAD = """
    .heic .heif .hif .jxl .jxr .jls .psd .psb .xcf .svg .svgz .eps .ai .ico .icns .cur .exr .hdr .fits
    .dng .cr2 .cr3 .nef .arw .raf .orf .rw2 .pef .srw .x3f .raw
    .dcm .dicom .ima .nii .mha .mhd .nrrd .svs .ndpi .mrxs .scn .czi .lif .nd2 .oib .vsi .bif
    .npy .npz .mat .h5 .hdf5 .zarr .parquet .arrow .tfrecord .lmdb
    .zip .tar .tgz .gz .bz2 .xz .7z .rar .mp4 .mov .avi .mkv .webm .pdf
"""
UNREAD_SUFFIXES = frozenset(UNREAD.split())
# First bytes of pictures, for files whose suffix says nothing.
PICTURE_STARTS = re.compile(
    rb"\xff\xd8\xff|\x89PNG|GIF8|BM|II\*\0|MM\0\*|RIFF....WEBP|....ftyp(heic|heix|mif1|avif)|.{128}DICM", re.S
)
DICOM_START = re.compile(rb".{128}DICM", re.S)
SNIFFED_BYTES = 132
UNREAD_WHY = "they look like pictures, but are not read; convert them"
CONTAINERS_WHY = {
    ".tar": "shards of images are read as shards:FOLDER",
    ".zip": "images in an archive are read as zip:FILE",
    ".parquet": "images in a table are read as parquet:FILE",
}
ARRAYS_WHY = "beside images of other formats, arrays are something else"
# Files numbered by their suffix are not all looked at.
MOST_SNIFFED = 100
# Where storage, systems and tools put thumbnails, deleted files and what they unpacked; in lower case.
SYSTEM_FOLDERS = frozenset(
    [
        *("@eadir", "#recycle", "@recycle", "#snapshot", "@recently-snapshot", "$recycle.bin", "__macosx"),
        *("system volume information", "lost+found", "lost.dir", "thumbs.db", "node_modules", "site-packages"),
    ]
)
# What MLflow writes where it is started, and what marks a folder as an output, a cache or an environment.
OUTPUT_FOLDERS = frozenset(["mlruns", "mlartifacts"])
OUTPUT_MARKS = frozenset(["MLmodel", "CACHEDIR.TAG", "pyvenv.cfg", "conda-meta"])
RUN_ID = re.compile(r"[0-9a-f]{32}")


@dataclass
class Tree:
    """The images in a folder at any depth.

    Attributes:
        names: relative to the folder, parts joined by `/`, in the order of their parts.
        runs: the folders that the names are in, in the same order, each ending with a slash but for the outermost, with
            how many of the names follow one another there.
        left_out: what else lies there.
    """

    names: Names
    runs: list[tuple[str, int]]
    left_out: list[LeftOut]


class Entry(Protocol):
    """A file or folder. `os.DirEntry` is one, of `Disk`."""

    @property
    def name(self) -> str:
        """Without the folder that it is in."""

    def is_dir(self) -> bool:
        """Whether it is a folder.

        Raises:
            OSError: it cannot be found out.
        """


class Place(Protocol):
    """Where images are looked for: a folder, or an archive."""

    def entries(self, folder: str) -> Iterable[Entry]:
        """What is in a folder, `""` or a name that ends with a slash; nothing if it was listed before, by a link.

        Raises:
            OSError: it cannot be listed.
        """

    def start(self, entry: Entry) -> bytes:
        """The first `SNIFFED_BYTES` of a file, or fewer; none if it cannot be read."""

    def again(self) -> Place:
        """The same place, of which nothing has been listed."""


@dataclass
class Disk:
    """A folder."""

    folder: Path
    seen: set[tuple[int, int]] = field(default_factory=set)

    def again(self) -> Disk:
        """The same folder, of which nothing has been listed."""
        return Disk(self.folder)

    def entries(self, folder: str) -> Iterable[os.DirEntry[str]]:
        """What is in a folder below it."""
        status = os.stat(self.folder / folder)
        if (status.st_dev, status.st_ino) in self.seen:
            return ()
        self.seen.add((status.st_dev, status.st_ino))
        with os.scandir(self.folder / folder) as scanned:
            return list(scanned)

    def start(self, entry: Entry) -> bytes:
        """The first bytes of a file."""
        assert isinstance(entry, os.DirEntry)
        try:
            # Opening a FIFO would wait for somebody to write.
            if not entry.is_file():
                return b""
            with open(entry.path, "rb") as opened:
                return opened.read(SNIFFED_BYTES)
        except OSError:
            return b""


def look_through(folder: Path) -> Tree:
    """Find the images in a folder.

    Hidden files, and folders of systems, outputs and environments, are left out; links to folders are followed once; a
    folder that cannot be listed is left out. What is named like an image but is not one, such as a broken link, is for
    `decode` to refuse.

    Raises:
        HptError: the folder itself cannot be listed.
    """
    return look_through_place(Disk(folder), str(folder))


def look_through_place(place: Place, shown: str) -> Tree:
    """Find the images in a folder or archive, as `look_through`.

    Args:
        shown: its name in errors.
    """
    for arrays in (False, True):
        walk = _Walk(place.again(), shown, arrays=arrays)
        names = Names.of(walk.names())
        # Arrays are images only if there are no others: beside them, they are masks, features or labels.
        if len(names) or not any(".npy" in what for what, _ in walk.counts):
            break
    return Tree(names, walk.runs, walk.account())


@dataclass
class _Walk:
    place: Place
    shown: str
    runs: list[tuple[str, int]] = field(default_factory=list)
    counts: dict[tuple[str, str], int] = field(default_factory=dict)
    examples: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    is_picture: dict[str, bool] = field(default_factory=dict)
    # Files without a suffix that are not DICOM, by folder.
    misses: dict[str, int] = field(default_factory=dict)
    arrays: bool = False

    def names(self) -> Iterator[str]:
        """All images; `runs` is filled on the way."""
        # Folders being walked, the innermost last. No recursion: a tree may be nested deeper than Python's call stack.
        open_folders = [("", *self._look_into(""))]
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
                self.runs.append((name, count))
            if inner:
                open_folders.append((f"{name}{inner}/", *self._look_into(f"{name}{inner}/")))

    def account(self) -> list[LeftOut]:
        """What was left out on the way, kind by kind."""
        return [
            LeftOut(what, self.counts[what, why], tuple(self.examples[what, why]), why) for what, why in self.counts
        ]

    def _look_into(self, name: str) -> tuple[Iterator[str], set[str]]:
        """What to walk in a folder: names in their order, and which of them are folders."""
        inside: list[str] = []
        folders: set[str] = set()
        try:
            visible = [entry for entry in self.place.entries(name) if entry.name[0] != "."]
            entries = sorted(visible, key=lambda entry: entry.name)
        except OSError as error:
            if not name:
                raise data_error(f"cannot list {printable(self.shown)}: {error.strerror}") from error
            self._leave_out("folders that cannot be listed", error.strerror or "", name)
            return iter(()), folders
        if why := _why_no_data(name, entries):
            self._leave_out(f"folders of {why}", "", name)
            return iter(()), folders
        for entry in entries:
            if _is_folder(entry):
                if entry.name.lower() in SYSTEM_FOLDERS:
                    self._leave_out("folders of a system or tool", "", name + entry.name)
                    continue
                folders.add(entry.name)
            elif not self._is_image(name, entry):
                continue
            inside.append(entry.name)
        return iter(inside), folders

    def _is_image(self, folder: str, entry: Entry) -> bool:
        suffix = registry.suffix_of(entry.name)
        if suffix in IMAGE_SUFFIXES:
            return True
        start = self._start_if_unknown(folder, suffix, entry)
        is_dicom = registry.may_be_dicom(suffix) and DICOM_START.match(start)
        if is_dicom and entry.name == "DICOMDIR":  # a list of the other files
            return False
        kind = "DICOM" if is_dicom else registry.suffixes().get(suffix)
        if kind and not (why := registry.missing(kind)) and (suffix != ".npy" or self.arrays):
            return True
        if kind or suffix in UNREAD_SUFFIXES or self._holds_picture(suffix, start):
            why = registry.TILE_SLIDES if suffix in registry.WHOLE_SLIDE else CONTAINERS_WHY.get(suffix, UNREAD_WHY)
            if kind:
                why = f"{missing} reads them" if (missing := registry.missing(kind)) else ARRAYS_WHY
            named = suffix or "without a suffix"
            self._leave_out(f"files {printable(named)}", why, folder + entry.name)
        return False

    def _start_if_unknown(self, folder: str, suffix: str, entry: Entry) -> bytes:
        """The first bytes of a file whose suffix says nothing, if it may be of interest; none of others.

        Files of DICOM studies have no suffix, or one of digits; of other suffixes the first file is looked at.
        """
        if suffix in UNREAD_SUFFIXES or suffix in registry.suffixes():
            return b""
        if registry.may_be_dicom(suffix):
            if self.misses.get(folder, 0) >= MOST_SNIFFED:
                return b""
            start = self.place.start(entry)
            self.misses[folder] = self.misses.get(folder, 0) + (not DICOM_START.match(start))
            return start
        return b"" if suffix in self.is_picture or len(self.is_picture) >= MOST_SNIFFED else self.place.start(entry)

    def _holds_picture(self, suffix: str, start: bytes) -> bool:
        """Whether the first file with an unknown suffix starts as a picture does."""
        if suffix not in self.is_picture and len(self.is_picture) < MOST_SNIFFED:
            self.is_picture[suffix] = bool(PICTURE_STARTS.match(start))
        return self.is_picture.get(suffix, False)

    def _leave_out(self, what: str, why: str, name: str) -> None:
        key = (what, why)
        self.counts[key] = self.counts.get(key, 0) + 1
        examples = self.examples.setdefault(key, [])
        if len(examples) < MOST_EXAMPLES:
            examples.append(printable(name))


def _why_no_data(name: str, entries: list[Entry]) -> str:
    """What makes a folder within the dataset an output or an environment; empty for data."""
    base = name.rstrip("/").rpartition("/")[2]
    inside = {entry.name for entry in entries}
    if name and (base.lower() in OUTPUT_FOLDERS or (RUN_ID.fullmatch(base) and "artifacts" in inside)):
        return "MLflow's outputs"
    if name and inside & OUTPUT_MARKS:
        return "outputs, caches or environments"
    return ""


def _is_folder(entry: Entry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads nowhere, or to where one may not look
        return False
