"""What a reader left out of a dataset, or put together, in words for the user and for the run."""

from __future__ import annotations

import re
from dataclasses import dataclass

PLURAL = re.compile(r"\b(file|folder|image|line|link|picture|row|sample|shard)s\b")


@dataclass(frozen=True)
class LeftOut:
    """One kind of thing that is not in a dataset as it lies there.

    Attributes:
        what: plural noun phrase, such as `rows that repeat an image`.
        count: how many.
        examples: at most 5 printable names.
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
