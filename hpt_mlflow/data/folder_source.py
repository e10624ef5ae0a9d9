"""`folder:PATH`: class folders, parts such as train and test with class folders, or images without classes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hpt_mlflow.data.account import LeftOut, examples_of
from hpt_mlflow.data.dataset import Dataset
from hpt_mlflow.data.errors import data_error
from hpt_mlflow.data.file_rows import Files
from hpt_mlflow.data.formats import registry
from hpt_mlflow.data.labels import number_classes
from hpt_mlflow.data.names import Names
from hpt_mlflow.data.parts import TEST, TRAIN, UNLABELLED, VALIDATION, has_parts, held_out, held_out_images, parts_of
from hpt_mlflow.data.paths import resolve_path
from hpt_mlflow.data.pictures import IMAGE_SUFFIXES, SUFFIXES, Encoded
from hpt_mlflow.data.split import NO_LABEL
from hpt_mlflow.data.tree import Tree, look_through
from hpt_mlflow.errors import printable

LOOKED_FOR = " ".join([SUFFIXES, *(suffix for suffix in registry.suffixes() if suffix not in IMAGE_SUFFIXES)])
# Images outside class folders are strays if they are less than this share of all; otherwise there are no classes.
STRAY_SHARE = 0.1


@dataclass(frozen=True)
class Run:
    """Images that follow one another in one folder.

    Attributes:
        start, count: their place among the names.
        part: the part that their folder is in, or None if there are no parts.
        inner: the folders below the part, outermost first.
    """

    start: int
    count: int
    part: str | None
    inner: list[str]


def open_folder(path: str, root: str | None, every_image: bool = False) -> Dataset:
    """Open a folder of images.

    - If some folders are called train, and some test or val (see `parts`), they are the parts of the dataset. Images
      of `unlabelled` are for self-supervised training only; other folders, and images outside the parts, are left out.
    - The folders in the folder, or in its parts, are classes. Images outside them are left out if they are few
      (`STRAY_SHARE`); if they are many, there are no classes.
    - A part without classes is left out if train has classes: it can be neither learned from nor tested on.

    Args:
        every_image: take all images, without parts and classes.

    Raises:
        HptError: there is no such folder, or it contains no image.
    """
    folder = resolve_path(path, root)
    if not os.path.isdir(folder):
        raise data_error(f"there is no folder {printable(str(folder))}{_hint(path, str(folder))}")
    return dataset_of_tree(
        look_through(folder),
        f"folder:{folder.resolve()}",
        folder.resolve().name,
        lambda names: Files(folder, names),
        every_image,
    )


def dataset_of_tree(
    tree: Tree, uri: str, name: str, pictures_of: Callable[[Names], Sequence[Encoded]], every_image: bool
) -> Dataset:
    """A dataset of the images in folders, on a disk or in an archive, by the rules of `open_folder`.

    Args:
        uri: the address that opens it again.
        pictures_of: gives the pictures of these names.
    """
    if not len(tree.names):
        why = "; ".join(f"left out: {entry}" for entry in tree.left_out)
        place = uri.partition(":")[2]
        raise data_error(f"no images in {printable(place)} (looked for {LOOKED_FOR}, at any depth)", why)
    runs, left_out = (_runs(tree), []) if every_image else _in_parts(_runs(tree), tree)
    labelled, why = (False, "") if every_image else _has_classes(runs)
    if labelled:
        runs, without = _with_classes(runs, tree)
        left_out += without
    names = tree.names if _count(runs) == len(tree.names) else Names.of(_each(tree.names, runs))
    labels, classes = _labels(runs) if labelled else (None, ())
    return Dataset(
        name=printable(name),
        uri=uri,
        pictures=pictures_of(names),
        names=names,
        labels=labels,
        classes=classes,
        test=held_out_images([run.part for run in runs], [run.count for run in runs]),
        unlabelled_because=why,
        left_out=(*tree.left_out, *left_out),
    )


def _hint(path: str, folder: str) -> str:
    """What a file named in place of a folder may be."""
    if not os.path.isfile(folder):
        return ""
    suffix = os.path.splitext(path)[1].lower()
    kind = {".csv": "csv", ".tsv": "csv", ".txt": "list", ".lst": "list"}.get(suffix)
    kind = kind or {".tar": "shards", ".zip": "zip", ".parquet": "parquet"}.get(suffix)
    if kind:
        return f", but there is a file; write {kind}:{printable(path)}"
    if suffix in {".tgz", ".gz", ".rar", ".7z"}:
        return ", but there is an archive; unpack it and name its folder"
    return ", but there is a file; name the folder that it is in"


def _runs(tree: Tree) -> list[Run]:
    starts = np.cumsum([0, *(count for _, count in tree.runs)])
    return [
        Run(int(start), count, None, name.split("/")[:-1])
        for start, (name, count) in zip(starts, tree.runs, strict=False)
    ]


def _in_parts(runs: list[Run], tree: Tree) -> tuple[list[Run], list[LeftOut]]:
    """The runs with the part that each is in, if the folder has parts; and what is in no part."""
    loose = [run for run in runs if not run.inner]
    parts = parts_of(run.inner[0] for run in runs if run.inner)
    has_many_outside = _count(loose) >= STRAY_SHARE * _count(runs) and held_out(parts.values()) is None
    if not has_parts(parts.values()) or has_many_outside:
        return runs, []
    inside = [replace(run, part=parts[run.inner[0]], inner=run.inner[1:]) for run in runs if run.inner]
    others = [run for run in inside if run.part is None]
    left_out = [
        *_left_out("images outside the parts", loose, tree, f"not in {_listed(parts, known=True)}"),
        *_left_out(
            "images in folders that are not a part", others, tree, f"{_listed(parts, known=False)} next to the parts"
        ),
    ]
    return [run for run in inside if run.part is not None], left_out


def _listed(parts: dict[str, str | None], known: bool) -> str:
    return ", ".join(printable(name) for name, part in parts.items() if (part is not None) == known)


def _has_classes(runs: list[Run]) -> tuple[bool, str]:
    """Whether folders are classes (in train, if there are parts), and why not, if that needs to be explained."""
    deciding = [run for run in runs if run.part in (None, TRAIN)]
    loose = [run for run in deciding if not run.inner]
    classes = {run.inner[0] for run in deciding if run.inner}
    if not classes or not loose:
        return bool(classes), ""
    if len(classes) > 1 and _count(loose) < STRAY_SHARE * _count(deciding):
        return True, ""
    return False, (
        f"{_count(loose)} of {_count(deciding)} images are outside the folders "
        f"{', '.join(examples_of(sorted(classes)))}; move them into class folders"
    )


def _with_classes(runs: list[Run], tree: Tree) -> tuple[list[Run], list[LeftOut]]:
    """The runs of a dataset with classes, without images that have no class; and what those are."""
    flat = {part for part in (VALIDATION, TEST) if _is_flat([run for run in runs if run.part == part])}
    without = [run for run in runs if run.part in flat]
    strays = [run for run in runs if run.part not in (*flat, UNLABELLED) and not run.inner]
    left_out = [
        *_left_out("images of a part without classes", without, tree, "nothing can be tested on them"),
        *_left_out("images outside the class folders", strays, tree, "they have no class"),
    ]
    gone = {run.start for run in (*without, *strays)}
    return [run for run in runs if run.start not in gone], left_out


def _is_flat(runs: list[Run]) -> bool:
    """Whether too many images of a part are outside its folders to be strays."""
    return _count(run for run in runs if not run.inner) >= max(1, STRAY_SHARE * _count(runs))


def _count(runs: Iterable[Run]) -> int:
    return sum(run.count for run in runs)


def _left_out(what: str, runs: list[Run], tree: Tree, why: str) -> list[LeftOut]:
    return [LeftOut(what, _count(runs), examples_of(_each(tree.names, runs)), why)] if runs else []


def _each(names: Names, runs: list[Run]) -> Iterator[str]:
    return (names[i] for run in runs for i in range(run.start, run.start + run.count))


def _labels(runs: list[Run]) -> tuple[np.ndarray, tuple[str, ...]]:
    classed = np.array([run.part != UNLABELLED for run in runs])
    numbers, classes = number_classes(run.inner[0] for run in runs if run.part != UNLABELLED)
    of_run = np.full(len(runs), NO_LABEL, np.int64)
    of_run[classed] = numbers
    return np.repeat(of_run, [run.count for run in runs]), classes
