"""Pictures of more than 8 bits: whether reading them as 8 bits loses what they show."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hpt_mlflow.data.dataset import Dataset, evenly_spaced
from hpt_mlflow.data.decode import UnreadableImageError, deep_values, to_8_bits
from hpt_mlflow.errors import printable

LOOKED_AT = 64
# Of 256 grey levels, a picture that keeps fewer shows less than a radiograph or a satellite image needs.
FEWEST_LEVELS = 64


@dataclass(frozen=True)
class _Deep:
    """What one picture holds, and what is kept of it."""

    index: int
    low: float
    high: float
    held: int
    kept: int


def depth_warning(dataset: Dataset, indices: np.ndarray) -> str | None:
    """One line where pictures of more than 8 bits keep few of 256 grey levels; None where they keep enough.

    A sample of `LOOKED_AT` is looked at. Of those with 8 bits, only headers are read.

    Args:
        indices: int64 (n,), of the pictures in question.
    """
    looked_at = evenly_spaced(indices, LOOKED_AT).tolist()
    poor = [deep for index in looked_at if (deep := _look(dataset, index)) and _is_poor(deep)]
    if not poor:
        return None
    worst = min(poor, key=lambda deep: deep.kept)
    return (
        f"{len(poor)} of the {len(looked_at)} pictures looked at lose most of their grey levels when they are read as "
        f"8 bits: {printable(str(dataset.names[worst.index]))} has values from {worst.low:,.6g} to "
        f"{worst.high:,.6g}, of whose {worst.held:,} levels {worst.kept} are kept; convert the pictures to 8 bits with "
        "the range that matters first, for example with magick IN -level LOW,HIGH -depth 8 OUT"
    )


def _is_poor(deep: _Deep) -> bool:
    return deep.kept < FEWEST_LEVELS and deep.held > deep.kept


def _look(dataset: Dataset, index: int) -> _Deep | None:
    """None for a picture of 8 bits, and for one that cannot be read, which is named elsewhere."""
    try:
        values = deep_values(dataset.pictures[index])
        if values is None or not values.size:
            return None
        held, kept = len(np.unique(values)), len(np.unique(to_8_bits(values)))
    except UnreadableImageError:
        return None
    return _Deep(index, float(values.min()), float(values.max()), held, kept)
