"""Pictures of more than 8 bits: whether reading them as 8 bits loses what they show."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hpt_mlflow.data.dataset import Dataset, evenly_spaced
from hpt_mlflow.data.decode import Encoded, UnreadableImageError, deep_values, is_stretched, to_8_bits
from hpt_mlflow.errors import printable

LOOKED_AT = 64
# Of each picture; enough to meet all the levels that matter.
PIXELS = 1 << 18
# Of 256 grey levels, a picture that keeps fewer shows less than a radiograph or a satellite image needs.
FEWEST_LEVELS = 64
# Where fewer are poor, they are the dark pictures that any dataset has, not a wrong scale of all.
FEWEST_SHARE = 0.1


@dataclass(frozen=True)
class _Deep:
    """What one picture holds, and what is kept of it.

    Attributes:
        low, high: its extremes.
        window: the range of its numbers without an extreme that stands alone.
        kept: how many of 256 grey levels.
        loses: whether its file tells more apart than is kept.
    """

    index: int
    low: float
    high: float
    window: tuple[float, float]
    kept: int
    loses: bool

    @property
    def is_stretched_by_one(self) -> bool:
        """Whether a single number, such as that for 'no data', takes most of the range by which it is scaled."""
        return is_stretched(self.low, self.high) and self.window[1] - self.window[0] < (self.high - self.low) / 2

    @property
    def is_poor(self) -> bool:
        return self.loses and (self.kept < FEWEST_LEVELS or self.is_stretched_by_one)


def depth_warning(dataset: Dataset, indices: np.ndarray) -> str | None:
    """One line where pictures of more than 8 bits keep few of 256 grey levels; None where they keep enough.

    A sample of `LOOKED_AT` is looked at. Of those with 8 bits, only headers are read.

    Args:
        indices: int64 (n,), of the pictures in question.
    """
    looked_at = evenly_spaced(indices, LOOKED_AT).tolist()
    deep = [found for index in looked_at if (found := _look(dataset, index))]
    poor = [found for found in deep if found.is_poor]
    if len(poor) < FEWEST_SHARE * len(deep):
        poor = [found for found in poor if found.is_stretched_by_one]
    if not poor:
        return None
    worst = min(poor, key=lambda found: found.kept)
    low, high = min(found.window[0] for found in poor), max(found.window[1] for found in poor)
    return (
        f"{len(poor)} of the {len(looked_at)} pictures looked at lose most of their grey levels when they are read as "
        f"8 bits: the values of {printable(str(dataset.names[worst.index]))}, from {worst.low:,.6g} to "
        f"{worst.high:,.6g}, keep {worst.kept} of 256; convert the pictures to 8 bits with the range that matters "
        f"first, for example with numpy.interp(values, [{low:.6g}, {high:.6g}], [0, 255]).astype('uint8')"
    )


def _look(dataset: Dataset, index: int) -> _Deep | None:
    """None for a picture of 8 bits, and for one that cannot be read, which is named elsewhere."""
    try:
        return _measured(index, dataset.pictures[index])
    except (UnreadableImageError, OSError, TypeError, ValueError):
        return None


def _measured(index: int, picture: Encoded) -> _Deep | None:
    deep = deep_values(picture)
    if deep is None or not deep[0].size:
        return None
    values, is_whole = deep
    extremes = values.min(), values.max()
    # The extremes are the scale, wherever they are.
    sample = np.append(values.reshape(-1)[:: -(-values.size // PIXELS)], extremes)
    levels, shown = np.unique(sample), np.unique(to_8_bits(sample[None]))
    # Of halved colours it is not known what was lost; where all of them are dark, their files have fewer bits than 16.
    loses = len(levels) > len(shown) if is_whole else shown[-1] < FEWEST_LEVELS
    return _Deep(index, float(extremes[0]), float(extremes[1]), _window(levels), len(shown), bool(loses))


def _window(levels: np.ndarray) -> tuple[float, float]:
    """The range of numbers in ascending order, without an extreme that is farther from the rest than they reach."""
    low, high = float(levels[0]), float(levels[-1])
    # Of two, neither is more alone than the other.
    if len(levels) > 2:
        second, last = float(levels[1]), float(levels[-2])
        if second - low > high - second:
            return second, high
        if high - last > last - low:
            return low, last
    return low, high
