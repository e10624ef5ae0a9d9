"""A figure with its 95% confidence interval: the one form in which this project states how sure a figure is."""

from __future__ import annotations

import math
from typing import NamedTuple


class Interval(NamedTuple):
    """A figure and the ends of its 95% interval, in the figure's unit; the ends are NaN where nothing tells them."""

    value: float
    low: float = math.nan
    high: float = math.nan

    @property
    def is_known(self) -> bool:
        """Whether there is an interval at all."""
        return not math.isnan(self.low)

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 lies outside the interval: False without one."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        """`0.731 (0.710 to 0.752)`, or the figure alone."""
        return f"{self.value:.3f}" + (f" ({self.ends})" if self.is_known else "")

    @property
    def ends(self) -> str:
        """`0.710 to 0.752`, or empty."""
        return f"{self.low:.3f} to {self.high:.3f}" if self.is_known else ""

    def signed(self, digits: int = 3) -> str:
        """A difference as text: `+0.031 [+0.010, +0.052]`."""
        ends = f" [{self.low:+.{digits}f}, {self.high:+.{digits}f}]" if self.is_known else ""
        return f"{self.value:+.{digits}f}{ends}"
