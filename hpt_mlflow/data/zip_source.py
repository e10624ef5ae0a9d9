"""`zip:FILE`: pictures in zip archives, read in place by the rules of folders."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from hpt_mlflow.data.account import LeftOut
from hpt_mlflow.data.containers import absolute, common_names, find_files, with_suffix
from hpt_mlflow.data.dataset import Dataset
from hpt_mlflow.data.errors import UnreadableImageError, data_error
from hpt_mlflow.data.folder_source import dataset_of_tree
from hpt_mlflow.data.names import Names
from hpt_mlflow.data.tree import SNIFFED_BYTES, Entry, look_through_place
from hpt_mlflow.data.zips import Archive, Member, ZipMembers, first_bytes, open_archive
from hpt_mlflow.errors import printable


def open_zip(address: str, root: str | None, every_image: bool = False) -> Dataset:
    """Open pictures in zip archives, which stay packed: each is read from its place when it is needed.

    Folders in an archive are parts and classes, as those of `open_folder`. A folder that contains the whole archive is
    left out of account. Several archives are read as folders of their names: `train.zip` and `test.zip` are parts,
    `cats.zip` and `dogs.zip` are classes.

    Args:
        address: a file, or a folder for all `*.zip` in it; or files with `{0..9}`, `{a,b}`, `*` and `?`; or several of
            these separated by `::`.
        root: folder that relative paths start from.
        every_image: take all images, without parts and classes.

    Raises:
        HptError: there is no such archive, it is damaged or encrypted, or it contains no image.
    """
    files = find_files(address, root, "archive", _in_folder)
    archives = [open_archive(file) for file in files]
    folder, file_names = common_names(files)
    stems = [""] if len(files) == 1 else [f"{name.removesuffix(Path(name).suffix)}/" for name in file_names]
    place = _Archives.of(archives, stems)
    tree = look_through_place(place, address)
    links = sum(archive.links for archive in archives)
    if links:
        tree = replace(tree, left_out=[*tree.left_out, LeftOut("links", links, ())])

    return dataset_of_tree(
        tree,
        f"zip:{absolute(address, root)}",
        Path(folder).name if len(files) > 1 else files[0].stem,
        place.pictures,
        every_image,
    )


def _in_folder(folder: Path) -> list[Path]:
    """The archives in a folder."""
    archives = list(with_suffix(folder, ".zip"))
    if not archives:
        raise data_error(f"no archives in {printable(str(folder))} (looked for *.zip)")
    return archives


@dataclass(frozen=True)
class _ZipEntry:
    """A file or folder in an archive, as `tree.Entry`.

    Attributes:
        path: its whole path; that of a folder ends with a slash.
    """

    name: str
    path: str

    def is_dir(self) -> bool:
        """Whether it is a folder."""
        return self.path.endswith("/")


@dataclass
class _Archives:
    """What is in archives, as `tree.Place`.

    Attributes:
        members: by path, the number of the archive and the member.
        folders: what is directly in each.
    """

    archives: list[Archive]
    members: dict[str, tuple[int, Member]] = field(default_factory=dict)
    folders: dict[str, dict[str, _ZipEntry]] = field(default_factory=lambda: {"": {}})

    @classmethod
    def of(cls, archives: list[Archive], stems: list[str]) -> _Archives:
        """
        Args:
            stems: the folder that each archive stands for.
        """
        place = cls(archives)
        for number, (archive, stem) in enumerate(zip(archives, stems, strict=True)):
            for path, member in archive.members.items():
                place.members[stem + path] = (number, member)
                place._add(stem + path)
        return place

    def _add(self, path: str) -> None:
        """Enter a file in its folder, and that in its own, up to one that is known."""
        while True:
            folder, slash, name = path.rstrip("/").rpartition("/")
            inside = self.folders.setdefault(folder + slash, {})
            is_known = bool(inside) or not folder
            inside[name] = _ZipEntry(name, path)
            if is_known:
                return
            path = folder + slash

    def entries(self, folder: str) -> Iterable[_ZipEntry]:
        """What is in a folder."""
        return self.folders.get(folder, {}).values()

    def again(self) -> _Archives:
        """The same archives; links do not lead round in circles in them."""
        return self

    def start(self, entry: Entry) -> bytes:
        """The first bytes of a file."""
        assert isinstance(entry, _ZipEntry)
        number, member = self.members[entry.path]
        try:
            with open(self.archives[number].file, "rb") as opened:
                return first_bytes(opened, member, SNIFFED_BYTES)
        except (OSError, UnreadableImageError):
            return b""

    def pictures(self, names: Names) -> ZipMembers:
        """The pictures of these names."""
        return ZipMembers(self.archives, (self.members[name] for name in names))
