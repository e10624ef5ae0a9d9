"""What the catalogue says of a dataset of the paper."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

Channels = tuple[float, float, float]


class Sizes(NamedTuple):
    """Numbers of images; None where it is not stated."""

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
        note: what a reader of its figures should know besides.
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
        """What opens it, but for the folder."""
        return f"paper:{self.key}?root=DIR"
