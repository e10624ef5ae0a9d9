"""The options at the end of an address: those of one reader, such as `FILE?label_column=A`, and those of all."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import NamedTuple
from unicodedata import normalize
from urllib.parse import unquote

from hpt_mlflow.data.errors import data_error
from hpt_mlflow.data.paths import resolve_path
from hpt_mlflow.errors import printable

# `?` alone is a wildcard in addresses of shards.
GROUP = "?group="
GROUP_REMEDY = (
    "write for example ?group=(patient[0-9]+), with parentheses around what names a group, or ?group=FILE.csv"
)
# First or later among the options.
BANDS = re.compile(r"(?P<sign>[?&])bands=(?P<bands>[^&?]*)(?=&|$)")
STACK = re.compile(r"[?&]stack=(?P<pattern>.+)$")


class Options(NamedTuple):
    """What any address may end with.

    Attributes:
        group: which images belong together, a pattern or a file; None if it is not said, or if the reader reads it.
        stack: the pattern of files that are bands of one image, or empty.
        bands: of the pictures, as channels, counted from 1; empty for all.
    """

    group: str | None = None
    stack: str = ""
    bands: tuple[int, ...] = ()


def split_options(address: str, scheme: str) -> tuple[str, Options]:
    """An address without the options that any may end with, and these.

    Raises:
        HptError: the bands are not whole numbers from 1 on, or one comes twice; or no group is named.
    """
    if os.path.exists(address):
        return address, Options()
    address, bands = _split_off_bands(address)
    match = None if os.path.exists(address) else STACK.search(address)
    address, stack = (address[: match.start()], match["pattern"]) if match else (address, "")
    # In a table, a column of groups is among its own options.
    if scheme == "csv" or GROUP not in address or os.path.exists(address):
        return address, Options(None, stack, bands)
    before, _, group = address.rpartition(GROUP)
    if not group:
        raise data_error(f"{printable(address)!r} names no group", GROUP_REMEDY)
    return before, Options(unquote(group), stack, bands)


def _split_off_bands(address: str) -> tuple[str, tuple[int, ...]]:
    match = BANDS.search(address)
    if match is None:
        return address, ()
    words = match["bands"].split(",")
    bands = tuple(int(word) for word in words if word.strip().isdecimal())
    if len(bands) < len(words) or min(bands) < 1 or len(set(bands)) < len(bands):
        raise data_error(f"cannot read bands={match['bands']!r}", "count bands from 1, each once: bands=4,3,2")
    before, after = address[: match.start()], address[match.end() :]
    return before + (match["sign"] + after.removeprefix("&") if after else ""), bands


def read_options(address: str, root: str | None, scheme: str, known: Sequence[str]) -> tuple[str, dict[str, str]]:
    """The path, and the values of the options of its reader; `%26`, `%3F` and `%25` mean `&`, `?` and `%` in one.

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
