"""A Parquet file of pictures: which columns hold them and their labels, as Hugging Face's `datasets` describes them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hpt_mlflow.data.containers import Stamp
from hpt_mlflow.data.errors import data_error, reading
from hpt_mlflow.data.parquet_rows import MOST_GROUP_BYTES, REMEDY
from hpt_mlflow.data.split import NO_LABEL
from hpt_mlflow.errors import one_line, printable

IMAGE_COLUMNS = ("image", "img", "picture", "photo")
# A damaged file may say that all rows have the same long path.
ROWS_AT_ONCE = 256
LABEL_COLUMNS = ("label", "labels", "class", "category", "target")


class Table(NamedTuple):
    """A Parquet file.

    Attributes:
        groups: how many rows each group has, int64.
        features: Hugging Face's description of each column; empty if there is none.
        image, label: the columns of pictures and labels; no label column if None.
    """

    file: Path
    stamp: Stamp
    schema: pa.Schema
    groups: np.ndarray
    features: dict[str, Any]
    image: str
    label: str | None


def open_table(file: Path, options: dict[str, str]) -> Table:
    """What is in a Parquet file.

    Args:
        options: `image_column` and `label_column`, if they are named.

    Raises:
        HptError: it is damaged, has no such column, or row groups that are too large.
    """
    shown = printable(str(file))
    with reading(f"the table {shown}"):
        stamp = Stamp.of(file, ".parquet")
        try:
            with open(file, "rb") as opened:
                table = pq.ParquetFile(opened, pre_buffer=False)
                schema, metadata = table.schema_arrow, table.metadata
                groups = np.array([metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)], np.int64)
                features = _features(schema)
                image = _image_column(schema, features, options.get("image_column"), shown)
                _check_groups(metadata, shown)
        except (pa.ArrowException, ValueError, OverflowError) as error:
            problem = f"{shown} is not a whole Parquet file ({printable(one_line(error))})"
            raise data_error(problem, "copy or download it again") from error
    # Each row has a picture of its own, which takes a byte at least.
    if (groups < 0).any() or groups.sum() != metadata.num_rows or metadata.num_rows > stamp.size:
        raise data_error(f"{shown} is damaged: it cannot have the {metadata.num_rows} rows that it declares")
    label = _label_column(schema, features, options.get("label_column"), shown)
    return Table(file, stamp, schema, groups, features, image, label)


def _check_groups(metadata: Any, shown: str) -> None:
    """Refuse a table that could only be read by gigabytes."""
    for i in range(metadata.num_row_groups):
        # Of all columns: pyarrow ends the process on some damaged metadata of a single one.
        size = metadata.row_group(i).total_byte_size
        if size > MOST_GROUP_BYTES:
            raise data_error(f"row group {i} of {shown} has {size} bytes, more than {MOST_GROUP_BYTES}", REMEDY)


def _features(schema: pa.Schema) -> dict[str, Any]:
    """Hugging Face's description of the columns, as far as there is one that can be read."""
    try:
        described = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError, RecursionError):
        return {}
    if not isinstance(described, dict):
        return {}
    return {str(name): feature for name, feature in described.items() if isinstance(feature, dict)}


def _image_column(schema: pa.Schema, features: dict[str, Any], wanted: str | None, shown: str) -> str:
    fitting = [field.name for field in schema if _holds_pictures(field.type)]
    if wanted is not None:
        if wanted not in fitting:
            raise data_error(f"{shown} has no column of pictures called {wanted!r}", f"it has {_listed(schema.names)}")
        return wanted
    called = [name for name in fitting if features.get(name, {}).get("_type") == "Image"] or fitting
    if len(called) > 1:
        called = [name for name in called if name.lower() in IMAGE_COLUMNS][:1] or called
    if len(called) != 1:
        several = f"several columns of pictures, {_listed(called)}" if called else "no column of pictures"
        remedy = "name one with ?image_column=" if called else f"it has {_listed(schema.names)}"
        raise data_error(f"{shown} has {several}", remedy)
    return called[0]


def _holds_pictures(kind: pa.DataType) -> bool:
    """Whether a column has bytes, or structs with bytes in a field of that name."""
    if pa.types.is_struct(kind):
        at = kind.get_field_index("bytes")
        return at >= 0 and _holds_pictures(kind.field(at).type) and not pa.types.is_struct(kind.field(at).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _label_column(schema: pa.Schema, features: dict[str, Any], wanted: str | None, shown: str) -> str | None:
    if wanted is not None:
        if wanted not in schema.names:
            raise data_error(f"{shown} has no column {wanted!r}", f"it has {_listed(schema.names)}")
        if not _holds_labels(schema.field(wanted).type):
            kind = schema.field(wanted).type
            raise data_error(
                f"the column {wanted!r} of {shown} is of type {kind}", "name one of whole numbers or texts"
            )
        return wanted
    fitting = [field.name for field in schema if _holds_labels(field.type)]
    called = [name for name in fitting if features.get(name, {}).get("_type") == "ClassLabel"]
    if not called:
        called = [name for name in fitting if name.lower() in LABEL_COLUMNS]
    if len(called) > 1:
        called = [name for name in called if name.lower() in LABEL_COLUMNS]
    return called[0] if len(called) == 1 else None


def _holds_labels(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    types = pa.types
    return bool(
        types.is_integer(kind) or types.is_string(kind) or types.is_large_string(kind) or types.is_boolean(kind)
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)


def why_unlabelled(table: Table) -> str:
    """Which column is to be named for labels."""
    several = [name for name, feature in table.features.items() if feature.get("_type") == "ClassLabel"]
    if len(several) > 1:
        return f"its columns {_listed(several)} are labels; name one with ?label_column="
    return f"no column of {printable(table.file.name)} is known to be a label; name one with ?label_column="


def labels_of(table: Table) -> np.ndarray | None:
    """The label of each row as text, str (N,), empty for rows without one; None without a column of labels."""
    if table.label is None:
        return None
    with reading(f"the table {printable(str(table.file))}"), open(table.file, "rb") as opened:
        try:
            # Each distinct text is kept once.
            read = pq.ParquetFile(opened, pre_buffer=False, read_dictionary=[table.label])
            distinct = read.read([table.label], use_threads=False).column(0).combine_chunks()
            if not pa.types.is_dictionary(distinct.type):
                distinct = distinct.dictionary_encode()
            if isinstance(distinct, pa.ChunkedArray):
                distinct = distinct.unify_dictionaries().combine_chunks()
            values = distinct.dictionary.to_pylist()
            codes = distinct.indices.fill_null(len(values)).to_numpy(zero_copy_only=False)
        except (pa.ArrowException, ValueError) as error:
            problem = f"the column {table.label!r} of {printable(str(table.file))} cannot be read"
            raise data_error(f"{problem} ({printable(one_line(error))})", "copy or download it again") from error
    _check_rows(len(codes), table)
    return np.array([*(_class_text(value, table) for value in values), ""])[codes]


def _check_rows(count: int, table: Table) -> None:
    if count != table.groups.sum():
        shown = printable(str(table.file))
        raise data_error(f"{shown} is damaged: a column has {count} rows of {table.groups.sum()}", "download it again")


def _class_text(value: Any, table: Table) -> str:
    """The class that a value of the label column means; empty for none."""
    feature = table.features.get(table.label or "", {})
    names = feature.get("names") if feature.get("_type") == "ClassLabel" else None
    if value is None or value == "" or (names is not None and value == NO_LABEL):
        return ""
    if names is None or isinstance(value, str):
        return str(int(value)) if isinstance(value, bool) else str(value).strip()
    if not isinstance(names, list) or not 0 <= value < len(names):
        raise data_error(
            f"{printable(str(table.file))} has the label {value} in the column {table.label!r}",
            f"its classes are numbered from 0 to {len(names) - 1}",
        )
    return str(names[value])


def paths_of(table: Table) -> Iterator[str | None]:
    """The path that each row names, or None."""
    kind = table.schema.field(table.image).type
    if not pa.types.is_struct(kind) or kind.get_field_index("path") < 0:
        yield from (None for _ in range(int(table.groups.sum())))
        return
    with reading(f"the table {printable(str(table.file))}"), open(table.file, "rb") as opened:
        try:
            batches = pq.ParquetFile(opened, pre_buffer=False).iter_batches(
                ROWS_AT_ONCE, columns=[f"{table.image}.path"], use_threads=False
            )
            count = 0
            for batch in batches:
                count += len(batch)
                yield from (None if row is None else row["path"] for row in batch.column(0).to_pylist())
        except (pa.ArrowException, ValueError) as error:
            problem = f"the paths in {printable(str(table.file))} cannot be read ({printable(one_line(error))})"
            raise data_error(problem, "copy or download it again") from error
    _check_rows(count, table)
