"""Tables of pictures in Parquet files: the bytes of a picture, out of the row groups that were read last."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hpt_mlflow.data.containers import Contained, Stamp, check_bytes
from hpt_mlflow.data.errors import UnreadableImageError
from hpt_mlflow.data.pictures import TurnLock
from hpt_mlflow.errors import printable

# A row group is read as a whole. The libraries that write pictures write 100 per group, or up to 100 MB.
MOST_GROUP_BYTES = 1 << 28
# Of the row groups that each process keeps, together.
KEPT_BYTES = 1 << 28
# Rows that are read at once: a damaged file may say that all are the same huge picture.
ROWS_AT_ONCE = 16
REMEDY = "write the table anew in groups of 100 rows, with pyarrow.parquet.write_table(table, FILE, row_group_size=100)"


class ParquetRows(Contained):
    """The pictures of the rows of tables in a row.

    The column of pictures has bytes, or structs of bytes and a path, as Hugging Face's `Image` writes them. A path
    without bytes is a file in the folder of the table.
    """

    noun = "table"

    def __init__(
        self, files: Sequence[Path], stamps: Sequence[Stamp], groups: Sequence[np.ndarray], columns: Sequence[str]
    ) -> None:
        """
        Args:
            groups: of each file, how many rows each of its groups has, int64.
            columns: of each file, the column of pictures.
        """
        counts = [int(each.sum()) for each in groups]
        numbers = np.repeat(np.arange(len(files)), counts)
        places = np.concatenate([np.arange(count) for count in counts])
        super().__init__(files, stamps, numbers, places)
        self._ends = [np.cumsum(each) for each in groups]
        self._columns = list(columns)
        self._lock = TurnLock()
        self._kept: OrderedDict[tuple[int, int], pa.Array] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        """What another process gets: no rows, which it reads itself."""
        return self.__dict__ | {"_kept": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock, self._kept = TurnLock(), OrderedDict()

    def _read(self, opened: BinaryIO, number: int, i: int) -> bytes:
        row = int(self._places[i])
        group = int(np.searchsorted(self._ends[number], row, side="right"))
        start = int(self._ends[number][group - 1]) if group else 0
        rows = self._group(opened, number, group)
        if len(rows) != self._ends[number][group] - start:
            raise UnreadableImageError(f"its table is damaged: a row group has {len(rows)} rows")
        value = rows[row - start].as_py()
        if isinstance(value, dict):
            content, path = value.get("bytes"), value.get("path")
            if content is None and path:
                return self._outside(number, str(path))
            value = content
        if value is None:
            raise UnreadableImageError("its row has no picture")
        check_bytes(len(value))
        return bytes(value)

    def _group(self, opened: BinaryIO, number: int, group: int) -> pa.Array:
        """The pictures of a row group, read by one thread at a time."""
        with self._lock:
            key = (number, group)
            if key not in self._kept:
                rows = read_group(opened, group, self._columns[number])
                while self._kept and rows.nbytes + sum(each.nbytes for each in self._kept.values()) > KEPT_BYTES:
                    self._kept.popitem(last=False)
                self._kept[key] = rows
            self._kept.move_to_end(key)
            return self._kept[key]

    def _outside(self, number: int, path: str) -> bytes:
        """The content of a file that a row names in place of its bytes, if it is in the folder of the table."""
        folder = os.path.realpath(os.path.dirname(self.files[number]))
        file = os.path.realpath(os.path.join(folder, path))
        if os.path.isabs(path) or os.path.commonpath([folder, file]) != folder:
            raise UnreadableImageError(f"its row names {printable(path)}, which is not in the folder of the table")
        if not os.path.isfile(file):
            raise UnreadableImageError(f"its row names {printable(path)}, which is not a file")
        check_bytes(os.path.getsize(file))
        return Path(file).read_bytes()


def read_group(opened: BinaryIO, group: int, column: str) -> pa.Array:
    """A column of a row group, in bounded memory.

    Raises:
        UnreadableImageError: it takes more than `MOST_GROUP_BYTES`, or is damaged.
    """
    try:
        table = pq.ParquetFile(opened, pre_buffer=False, buffer_size=1 << 20)
        size, some = 0, []
        for batch in table.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=[column], use_threads=False):
            some.append(batch.column(0))
            size += some[-1].nbytes
            _check_group(size)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UnreadableImageError(f"its table is damaged: {printable(str(error).splitlines()[0])}") from error
    return pa.concat_arrays(some)


def _check_group(size: int) -> None:
    if size > MOST_GROUP_BYTES:
        raise UnreadableImageError(f"its row group has {size} bytes, more than {MOST_GROUP_BYTES}; {REMEDY}")
