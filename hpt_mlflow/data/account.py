"""What a reader left out of a dataset, or merged, in words for the user and for the run."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from hpt_mlflow.errors import printable

PLURAL = re.compile(r"\b(file|folder|image|line|link|picture|row|sample|shard)s\b")
# Names that are shown of each kind, and looked at to find different ones.
MOST_EXAMPLES = 5
MOST_LOOKED_AT = 1000


@dataclass(frozen=True)
class LeftOut:
    """One kind of thing that a dataset leaves out.

    Attributes:
        what: plural noun phrase, such as `rows that repeat an image`.
        count: how many.
        examples: at most `MOST_EXAMPLES` printable names.
        why: what it means for the user, or empty.
    """

    what: str
    count: int
    examples: tuple[str, ...]
    why: str = ""

    def __str__(self) -> str:
        names = ", ".join(self.examples) + (", ..." if self.count > len(self.examples) else "")
        named = f" ({names})" if self.examples else ""
        what = PLURAL.sub(r"\1", self.what, count=1) if self.count == 1 else self.what
        return f"{self.count} {what}{named}" + (f": {self.why}" if self.why else "")


def examples_of(names: Iterable[str]) -> tuple[str, ...]:
    """The first few different names, printable."""
    different: dict[str, None] = {}
    for name, _ in zip(names, range(MOST_LOOKED_AT), strict=False):
        different[printable(name)] = None
        if len(different) == MOST_EXAMPLES:
            break
    return tuple(different)
