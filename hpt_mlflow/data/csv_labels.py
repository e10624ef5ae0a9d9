"""Which columns of a table are labels: one of class names, or a column for each label."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hpt_mlflow.data.csv_table import Table, plain_name
from hpt_mlflow.data.errors import data_error
from hpt_mlflow.data.labels import number_classes
from hpt_mlflow.errors import printable

# Names of columns as `plain_name` gives them; the first that a table has counts.
CLASS_COLUMNS = ("label", "class", "category", "target", "classname")
# Columns of numbers that count images, or say where in an image something is, but are not labels.
BOOKKEEPING_NAMES = """
    fold foldid kfold cv index idx id imageid rowid level0 unnamed0 year age order weight score confidence conf prob
    width height depth channels area x y w h x1 y1 x2 y2 xmin ymin xmax ymax xcenter ycenter cx cy
    iscrowd difficult occluded truncated isvalid istrain istest
"""
BOOKKEEPING = frozenset(BOOKKEEPING_NAMES.split())
# As the paper's reference code maps CheXpert: blank, no and uncertain count as 0.
LABEL_VALUES = {
    text: value
    for value, texts in {0: ("", "0", "0.0", "-1", "-1.0"), 1: ("1", "1.0", "+1", "+1.0")}.items()
    for text in texts
}
# With at least this many columns of 1 and 0, columns of words describe the image, as in CheXpert.
MANY_LABELS = 3
# Longer lists of columns are cut in messages.
MOST_SHOWN = 12


class TableLabels(NamedTuple):
    """Labels of the rows of a table.

    Attributes:
        values: classes int64 (N,), or labels uint8 (N, L), or None.
        classes: their names.
        columns: the columns that they come from.
        unlabelled_because: why there are no labels, or empty.
    """

    values: np.ndarray | None
    classes: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    unlabelled_because: str = ""


def find_labels(table: Table, labels: list[str] | None, label_column: str | None, special: set[str]) -> TableLabels:
    """The labels that the address names, or else those that the table has.

    A column with one of the names in `CLASS_COLUMNS` holds classes. Without one, all columns that contain only 1, 0, -1
    and blank are labels, except empty ones, those in `BOOKKEEPING` and numbers such as `class_id`. One or two such
    columns are labels only if no column of words may be the class.

    Args:
        labels: names of columns of 1 and 0.
        label_column: name of the column of classes.
        special: columns that are not labels: the image, its part and its group.

    Raises:
        HptError: a named column is missing, or a row has no label or one that cannot be read.
    """
    if labels is not None:
        return _named_labels(table, labels)
    if label_column is not None:
        check_column(table, label_column)
        return _classes(table, label_column)
    class_columns = {name: plain_name(name) for name in table.columns if name and name not in special}
    class_column = next((c for known in CLASS_COLUMNS for c, plain in class_columns.items() if plain == known), None)
    if class_column is not None and any(table.columns[class_column]):
        return _classes(table, class_column)
    candidates = {
        name: set(values)
        for name, values in table.columns.items()
        if name and name not in special and not _keeps_count(name) and any(values)
    }
    binary = [name for name, distinct in candidates.items() if distinct <= LABEL_VALUES.keys() and not _is_id(name)]
    words = [name for name, distinct in candidates.items() if _may_be_classes(distinct, len(table.lines))]
    if binary and (len(binary) >= MANY_LABELS or not words):
        return _matrix(table, binary)
    return TableLabels(None, unlabelled_because=_why_none(table, class_column, words or list(candidates), binary))


def check_column(table: Table, name: str) -> None:
    """
    Raises:
        HptError: the table has no such column.
    """
    if name not in table.columns:
        has = ", ".join(filter(None, table.columns))
        raise data_error(f"{table.shown} has no column {name!r}", f"it has {printable(has)}")


def _keeps_count(name: str) -> bool:
    """Whether a column is one of `BOOKKEEPING`, even with a number after it or `bbox` before it: `fold_2`."""
    plain = plain_name(name)
    return not BOOKKEEPING.isdisjoint({plain, plain.rstrip("0123456789"), plain.removeprefix("bbox")})


def _is_id(name: str) -> bool:
    """Whether the numbers of a column name classes or things, such as `class_id`, where 0 and 1 are two of them."""
    return name.lower().endswith(("_id", "-id", ".id", " id"))


def _may_be_classes(distinct: set[str], rows: int) -> bool:
    """Whether these values of a column are words that repeat."""
    return 2 <= len(distinct) <= rows / 2 and not all(map(_is_number, distinct))


def _is_number(text: str) -> bool:
    try:
        float(text or "0")
    except ValueError:
        return False
    return True


def _why_none(table: Table, class_column: str | None, possible: list[str], binary: list[str]) -> str:
    """What the table lacks, and what to write."""
    columns = list(filter(None, table.columns))
    shown = printable(", ".join(columns[:MOST_SHOWN])) + (", ..." if len(columns) > MOST_SHOWN else "")
    known = f"{', '.join(CLASS_COLUMNS[:-1])} or {CLASS_COLUMNS[-1]}"
    if class_column is not None:
        why = f"its column {class_column!r} is empty"
    elif len(columns) == 1:
        why = f"its only column is {shown}, and none is called {known}"
    else:
        why = f"none of its columns {shown} is called {known}"
    example = quote(next((name for name in possible if name not in binary), "COLUMN"))
    labels = ",".join(map(quote, binary)) or "A,B"
    return printable(
        f"{why}; write csv:FILE?label_column={example}, or csv:FILE?labels={labels} for columns of 1 and 0"
    )


def quote(text: str) -> str:
    """A name as it is written in an address."""
    return text.replace("%", "%25").replace("&", "%26").replace(",", "%2C").replace("?", "%3F")


def _classes(table: Table, column: str) -> TableLabels:
    values = table.columns[column]
    for line, value in zip(table.lines, values, strict=True):
        if not value:
            raise data_error(f"line {line} of {table.shown} has no {column!r}", "give every row one, or none")
    return TableLabels(*number_classes(values), (column,))


def _named_labels(table: Table, names: list[str]) -> TableLabels:
    """The labels that the address names, once each."""
    for name in names:
        check_column(table, name)
        for line, value in zip(table.lines, table.columns[name], strict=True):
            if value not in LABEL_VALUES:
                raise data_error(
                    f"line {line} of {table.shown} has {value!r} in the column {name!r}",
                    f"a label is 1, 0, -1 or blank (for a column of classes write "
                    f"?label_column={printable(quote(name))})",
                )
    return _matrix(table, list(dict.fromkeys(names)))


def _matrix(table: Table, names: list[str]) -> TableLabels:
    """Labels uint8 (N, L) of these columns, and their printable names."""
    columns = [[LABEL_VALUES[value] for value in table.columns[name]] for name in names]
    return TableLabels(np.array(columns, dtype=np.uint8).T.copy(), tuple(map(printable, names)), tuple(names))
