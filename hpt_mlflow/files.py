"""Files that nobody ever sees half of, and folders that others leave out."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

CACHE_TAG = "CACHEDIR.TAG"
CACHE_TAG_TEXT = """Signature: 8a477f597d28d172789f06886806bc55
# What hpt_mlflow keeps for itself: no dataset, and not worth a backup. See https://bford.info/cachedir/
"""


def make_cache_folder(folder: Path) -> None:
    """Make a folder, where it is not there yet, and mark it as a cache.

    A folder that is there may hold something else as well, and stays as it is.

    Raises:
        OSError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        return
    with suppress(OSError):
        (folder / CACHE_TAG).write_text(CACHE_TAG_TEXT)


@contextmanager
def replacing(file: Path, mode: int = 0o666) -> Iterator[Path]:
    """A path beside a file, with its ending, to write to.

    What is there when the block ends takes the file's place in one step. Where the block breaks off, the file stays as
    it was, and nothing is left beside it.

    Args:
        mode: permissions of a new file, less those that the process withholds from all files.

    Raises:
        OSError: nothing can be written there; before the block, whose writers may say so in words of their own.
    """
    temporary = file.with_name(f".{os.getpid()}-{threading.get_ident()}.{file.name}")
    temporary.touch(mode)
    try:
        yield temporary
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
