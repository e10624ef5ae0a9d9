"""A Parquet file that is written part by part, so that an interrupted command resumes where it was."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hpt_mlflow.files import make_cache_folder, replacing

WORK_FILE = "work.json"


class ParquetParts:
    """Parts in a folder beside the file, FILE.parts, which become the row groups of the file in the end.

    Attributes:
        done: parts that are there.
    """

    def __init__(self, file: Path, work: Mapping[str, Any]) -> None:
        """Keep the parts of the same work; delete those of other work.

        Args:
            work: what decides the content of the parts, as JSON.

        Raises:
            OSError: the folder cannot be written.
        """
        self.file, self.folder = file, file.with_name(f"{file.name}.parts")
        described = json.dumps(work, sort_keys=True)
        with suppress(OSError):
            if (self.folder / WORK_FILE).read_text() != described:
                shutil.rmtree(self.folder)
        make_cache_folder(self.folder)
        (self.folder / WORK_FILE).write_text(described)
        self.done = 0
        while self._part(self.done).exists():
            self.done += 1

    def add(self, table: pa.Table) -> None:
        """Write the next part."""
        with replacing(self._part(self.done)) as written:
            pq.write_table(table, written)
        self.done += 1

    def finish(self, schema: pa.Schema) -> None:
        """Put the parts together, in place of a file that is there, and delete them."""
        with replacing(self.file) as written, pq.ParquetWriter(written, schema) as writer:
            for number in range(self.done):
                writer.write_table(pq.read_table(self._part(number), schema=schema))
        shutil.rmtree(self.folder, ignore_errors=True)

    def _part(self, number: int) -> Path:
        return self.folder / f"{number:06}.parquet"
