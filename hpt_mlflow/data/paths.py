"""Where relative paths start from."""

from __future__ import annotations

import os
from pathlib import Path


def resolve_path(path: str, root: str | None) -> Path:
    """The path with `~` expanded; a relative one starts from `root` where there is one."""
    expanded = Path(os.path.expanduser(path))
    return expanded if root is None or expanded.is_absolute() else Path(os.path.expanduser(root)) / expanded


def name_in(folder: str | Path, name: str) -> str:
    """The name of an image, with slashes for the backslashes of Windows where there is no file of the name itself."""
    if "\\" not in name or os.path.isfile(os.path.join(folder, name)):
        return name
    return name.replace("\\", "/")
