"""`parquet:FILE`: tables of pictures and labels, as Hugging Face's `datasets` writes them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from hpt_mlflow.data.account import LeftOut
from hpt_mlflow.data.address import read_options
from hpt_mlflow.data.containers import absolute, common_names, find_files
from hpt_mlflow.data.csv_labels import quote
from hpt_mlflow.data.dataset import Dataset
from hpt_mlflow.data.errors import data_error
from hpt_mlflow.data.labels import number_classes
from hpt_mlflow.data.names import Names
from hpt_mlflow.data.parquet_rows import ParquetRows
from hpt_mlflow.data.parquet_table import Table, labels_of, open_table, paths_of, why_unlabelled
from hpt_mlflow.data.parts import TEST, VALIDATION, held_out_images, parts_of_files
from hpt_mlflow.data.split import NO_LABEL
from hpt_mlflow.errors import printable

OPTIONS = ("image_column", "label_column")
# train-00000-of-00002, with or without a fingerprint.
NUMBERED = re.compile(r"-\d+-of-\d+(-[0-9a-f]+)?$")


def open_parquet(address: str, root: str | None, every_image: bool = False) -> Dataset:
    """Open tables of pictures, which are read by row groups when they are needed.

    - Pictures are the column that Hugging Face's description calls an `Image`, or else one of structs of bytes and
      path, or of bytes, if there is only one, or if it is called image, img, picture or photo.
    - Labels are the only column that it calls a `ClassLabel`, with the names of its classes, or else whole numbers or
      texts in a column called label, labels, class, category or target. -1 and nothing mean no label.
    - Files named after their part, such as `train-00000-of-00002.parquet` or `test/0000.parquet`, are parts as shards
      are. A part to test on without labels is left out if others have some.

    Args:
        address: a file, or a folder for all `*.parquet` in it at any depth; or files with `{0..9}`, `{a,b}`, `*` and
            `?`; or several of these separated by `::`. Then, if needed, `?image_column=A&label_column=B`.
        root: folder that relative paths start from.
        every_image: take all rows, without parts and labels.

    Raises:
        HptError: there are no such tables, or one is damaged or has no column of pictures.
    """
    path, options = read_options(address, root, "parquet", OPTIONS)
    tables = [open_table(file, options) for file in find_files(path, root, "table", _in_folder)]
    folder, names = common_names([table.file for table in tables])
    parts: list[str | None] = [None] * len(tables)
    left_out: list[LeftOut] = []
    if not every_image:
        stems = [NUMBERED.sub("", name.removesuffix(Path(name).suffix)) for name in names]
        parts, left_out = parts_of_files(stems, "tables", names)
    labels = [None if every_image else labels_of(table) for table in tables]
    if left_out:
        kept = [i for i, part in enumerate(parts) if part is not None]
    else:
        kept, left_out = _without_unlabelled_parts(parts, labels, [int(table.groups.sum()) for table in tables])
    tables, names = [tables[i] for i in kept], [names[i] for i in kept]
    parts, labels = [parts[i] for i in kept], [labels[i] for i in kept]
    counts = [int(table.groups.sum()) for table in tables]
    if not sum(counts):
        raise data_error(f"parquet:{printable(address)} has no rows")
    values, classes = _numbered(labels)
    query = "&".join(f"{name}={quote(value)}" for name, value in options.items())
    return Dataset(
        name=printable(tables[0].file.stem if len(tables) == 1 else Path(folder).name),
        uri=f"parquet:{absolute(path, root)}" + (f"?{query}" if query else ""),
        pictures=ParquetRows(
            [table.file for table in tables],
            [table.stamp for table in tables],
            [table.groups for table in tables],
            [table.image for table in tables],
        ),
        names=Names.of(_names(tables, names)),
        labels=values,
        classes=classes,
        test=held_out_images(parts, counts),
        unlabelled_because="" if values is not None else why_unlabelled(tables[0]),
        left_out=tuple(left_out),
    )


def _in_folder(folder: Path) -> list[Path]:
    """The tables in a folder at any depth."""
    tables = []
    for inner, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name[0] != ".")
        tables += [Path(inner, name) for name in sorted(files) if name[0] != "." and name.lower().endswith(".parquet")]
    if not tables:
        raise data_error(f"no tables in {printable(str(folder))} (looked for *.parquet, at any depth)")
    return tables


def _without_unlabelled_parts(
    parts: list[str | None], labels: list[np.ndarray | None], counts: list[int]
) -> tuple[list[int], list[LeftOut]]:
    """The tables that are not of a part to test on that has no labels while others do, and what the rest is."""
    labelled = [column is not None and bool((column != "").any()) for column in labels]
    kept = list(range(len(parts)))
    left_out = []
    for part in (VALIDATION, TEST) if any(labelled) else ():
        of_part = [i for i in kept if parts[i] == part]
        if of_part and not any(labelled[i] for i in of_part):
            what = f"images of the part {part}"
            left_out.append(LeftOut(what, sum(counts[i] for i in of_part), (), "they have no labels to test on"))
            kept = [i for i in kept if i not in of_part]
    return kept, left_out


def _numbered(labels: Sequence[np.ndarray | None]) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Labels of all tables as numbers, int64 (N,), `NO_LABEL` for none; None and no classes if no row has one."""
    columns = [column for column in labels if column is not None]
    if len(columns) < len(labels) or not any((column != "").any() for column in columns):
        return None, ()
    distinct, of_row = np.unique(np.concatenate(columns), return_inverse=True)
    known = distinct[distinct != ""]
    numbers, classes = number_classes(known.tolist())
    of_text = np.full(len(distinct), NO_LABEL, np.int64)
    of_text[distinct != ""] = numbers
    return of_text[of_row.reshape(-1)], classes


def _names(tables: Sequence[Table], names: Sequence[str]) -> Iterator[str]:
    """`FILE/ROW`, with the path of the picture in it if the table has one: `FILE/ROW/PATH`."""
    for table, name in zip(tables, names, strict=True):
        for row, path in enumerate(paths_of(table)):
            yield f"{name}/{row}" + (f"/{path}" if path else "")
