"""Files that nobody ever sees half of."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A path beside a file, with its ending, to write to.

    What is there when the block ends takes the file's place in one step. Where the block breaks off, the file stays as
    it was, and nothing is left beside it.

    Raises:
        OSError: nothing can be written there; before the block, whose writers may say so in words of their own.
    """
    temporary = file.with_name(f".{os.getpid()}-{threading.get_ident()}.{file.name}")
    temporary.touch()
    try:
        yield temporary
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
