"""What the pixels of images are: 8-bit RGB, or any number of channels of 8 or 16 bits."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class PixelFormat:
    """How the numbers in pictures become pixels.

    Attributes:
        bands: which bands of a picture become channels, counted from 1; empty for red, green and blue.
        low, high: of each channel, the numbers that become black (0) and white; empty where pixels have 8 bits.
    """

    bands: tuple[int, ...] = ()
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()

    @property
    def channels(self) -> int:
        """How many channels pixels have."""
        return len(self.bands) or 3

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of pixels: uint8, or uint16 where numbers are scaled."""
        return np.dtype(np.uint16 if self.low else np.uint8)

    @property
    def pixel_bytes(self) -> int:
        """Size of one pixel."""
        return self.channels * int(self.dtype.itemsize)

    @property
    def is_rgb(self) -> bool:
        """Whether pixels are 8-bit RGB, as from most files."""
        return not self.bands and not self.low

    def __str__(self) -> str:
        if self.is_rgb:
            return "8-bit RGB"
        names = f"bands {', '.join(map(str, self.bands))}" if self.bands else "grey or RGB"
        ranges = dict.fromkeys(f"{low:,.6g} to {high:,.6g}" for low, high in zip(self.low, self.high, strict=True))
        return f"{names}, 16 bits from {'; '.join(ranges)}" if ranges else f"{names}, 8 bits"

    def as_values(self) -> dict[str, list[float]]:
        """For files of JSON."""
        return {name: list(values) for name, values in asdict(self).items()}


RGB = PixelFormat()


def pixel_format_of(values: dict[str, Any]) -> PixelFormat:
    """The format that `PixelFormat.as_values` described.

    Raises:
        ValueError, TypeError, KeyError: it is none.
    """
    bands = tuple(int(band) for band in values["bands"])
    low, high = (tuple(float(number) for number in values[name]) for name in ("low", "high"))
    pixels = PixelFormat(bands, low, high)
    if len(low) != len(high) or len(low) not in (0, pixels.channels) or min(bands, default=1) < 1:
        raise ValueError(f"{values} is not a format of pixels")
    return pixels


def shown(image: np.ndarray) -> np.ndarray:
    """An image as people may look at it: its first three channels as colours, or one as grey; of two, the first.

    Args:
        image: uint8 or uint16 (height, width, channels).

    Returns:
        uint8 (height, width, 3).
    """
    colours = image[:, :, :3] if image.shape[2] >= 3 else np.repeat(image[:, :, :1], 3, axis=2)
    return colours if colours.dtype == np.uint8 else (colours >> 8).astype(np.uint8)
