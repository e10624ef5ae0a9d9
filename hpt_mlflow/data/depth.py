"""Pictures of more than 8 bits: whether reading them as 8 bits loses what they show."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hpt_mlflow.data.dataset import Dataset, evenly_spaced
from hpt_mlflow.data.decode import deep_values, to_8_bits
from hpt_mlflow.data.errors import UnreadableImageError
from hpt_mlflow.errors import printable

LOOKED_AT = 64
# Of each picture; enough to meet all the levels that matter.
PIXELS = 1 << 18
# Of 256 grey levels, a picture that keeps fewer shows less than a radiograph or a satellite image needs.
FEWEST_LEVELS = 100
# Where fewer are poor, they are the dark pictures that any dataset has, not a wrong scale of all.
FEWEST_SHARE = 0.1


@dataclass(frozen=True)
class _Deep:
    """A picture of more than 8 bits.

    Attributes:
        low, high: its extremes.
        window: the range of its numbers without the outermost percent, such as a number for 'no data'.
        levels: how many of 256 grey levels it keeps.
        is_poor: whether these are few, though its file tells more apart or all of it is dark.
    """

    index: int
    low: float
    high: float
    window: tuple[float, float]
    levels: int
    is_poor: bool


def depth_warning(dataset: Dataset, indices: np.ndarray) -> str | None:
    """One line where pictures of more than 8 bits keep few of 256 grey levels; None where they keep enough.

    A sample of `LOOKED_AT` is looked at. Of those with 8 bits, only headers are read.

    Args:
        indices: int64 (n,), of the pictures in question.
    """
    looked_at = evenly_spaced(indices, LOOKED_AT).tolist()
    deep = [picture for index in looked_at if (picture := _measure(dataset, index))]
    poor = [picture for picture in deep if picture.is_poor]
    if not poor or len(poor) < FEWEST_SHARE * len(deep):
        return None
    worst = min(poor, key=lambda picture: picture.levels)
    low, high = min(picture.window[0] for picture in poor), max(picture.window[1] for picture in poor)
    return (
        f"{len(poor)} of the {len(looked_at)} pictures looked at lose most of their grey levels when they are read as "
        f"8 bits: the values of {printable(str(dataset.names[worst.index]))}, from {worst.low:,.6g} to "
        f"{worst.high:,.6g}, keep {worst.levels} of 256; convert the pictures to 8 bits with the range that matters "
        f"first, for example with numpy.interp(values, [{low:.6g}, {high:.6g}], [0, 255]).astype('uint8')"
    )


def _measure(dataset: Dataset, index: int) -> _Deep | None:
    """None for a picture of 8 bits, and for one that cannot be read, which is named elsewhere."""
    try:
        values = deep_values(dataset.pictures[index])
        if values is None or not values.size:
            return None
        low, high = values.min(), values.max()
        # The extremes are the scale, wherever they are.
        sample = np.append(values.reshape(-1)[:: -(-values.size // PIXELS)], (low, high))
        levels, shown = np.unique(sample), np.unique(to_8_bits(sample[None]))
    except (UnreadableImageError, OSError, TypeError, ValueError):
        return None
    lower, upper = np.percentile(levels, (1, 99)).tolist()
    is_poor = len(shown) < FEWEST_LEVELS and (len(levels) > len(shown) or shown[-1] < FEWEST_LEVELS)
    return _Deep(index, float(low), float(high), (lower, upper), len(shown), bool(is_poor))
