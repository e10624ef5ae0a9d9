"""The options after the question mark of an address, such as `FILE?label_column=A`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from unicodedata import normalize
from urllib.parse import unquote

from hpt_mlflow.data.errors import data_error
from hpt_mlflow.data.paths import resolve_path
from hpt_mlflow.errors import printable


def read_options(address: str, root: str | None, scheme: str, known: Sequence[str]) -> tuple[str, dict[str, str]]:
    """The path, and the values of its options; `%26`, `%3F` and `%25` mean `&`, `?` and `%` in one.

    Args:
        scheme: of the address, and
        known: its options, for errors.

    Raises:
        HptError: an option is unknown or has no value.
    """
    path, mark, query = address.rpartition("?")
    # A question mark may be part of a path or pattern.
    if not mark or "=" not in query or os.path.exists(resolve_path(address, root)):
        return address, {}
    options: dict[str, str] = {}
    for option in query.split("&"):
        name, _, value = option.partition("=")
        value = normalize("NFC", unquote(value).strip())
        if name not in known or not value:
            example = f"{scheme}:{printable(path)}?{known[0]}=A"
            raise data_error(f"cannot read {option!r} in {scheme}:{printable(address)}", f"write for example {example}")
        options[name] = value
    return path, options
