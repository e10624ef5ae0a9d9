"""The 16 datasets of the paper: what each one is, where people get it, and how its unpacked folder looks.

In `catalogue.json`, channel statistics, domains, numbers of classes and metrics are those of the paper's reference
code. Everything else is from the dataset's publication or web page, or counted in public copies of it. What could not
be confirmed there is null or missing.
"""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from hpt_mlflow.data.errors import data_error

Channels = tuple[float, float, float]


class Sizes(NamedTuple):
    """Numbers of images; None if it is not stated."""

    total: int | None = None
    train: int | None = None
    validation: int | None = None
    test: int | None = None


@dataclass(frozen=True)
class CatalogueEntry:
    """One dataset of the paper.

    Attributes:
        key: its name in `paper:KEY?root=DIR`.
        task: what is learned from labels in this project.
        metric: as the paper evaluates it.
        mean, std: of the channels in the reference code, of values from 0 to 1, red first.
        split: the official split, in words, and which part of it this project holds out as test.
        licence: as its authors state it.
        layout: lines of a short tree of the unpacked folder.
        note: what else a reader of its results should know.
    """

    key: str
    title: str
    domain: str
    task: str
    classes: int
    sizes: Sizes
    metric: str
    mean: Channels
    std: Channels
    split: str
    source: str
    licence: str | None
    layout: tuple[str, ...]
    note: str = ""

    @property
    def address(self) -> str:
        """What opens it, with DIR for the folder."""
        return f"paper:{self.key}?root=DIR"


def _read() -> tuple[CatalogueEntry, ...]:
    content: list[dict[str, Any]] = json.loads(Path(__file__).with_name("catalogue.json").read_text(encoding="utf-8"))
    for values in content:
        values["sizes"] = Sizes(**values["sizes"])
        for name in ("mean", "std", "layout"):
            values[name] = tuple(values[name])
    return tuple(CatalogueEntry(**values) for values in content)


ENTRIES = _read()
BY_KEY = {entry.key: entry for entry in ENTRIES}


def catalogue_entry(name: str) -> CatalogueEntry:
    """The entry of a dataset.

    Raises:
        HptError: the paper has no such dataset.
    """
    if name in BY_KEY:
        return BY_KEY[name]
    close = difflib.get_close_matches(name, BY_KEY, n=2)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    raise data_error(f"the paper has no dataset {name!r}", f"{hint}there are {', '.join(BY_KEY)}")
