"""Among millions of hashes, those that agree with a picture in nearly all bits that are certain.

A hash is cut into bands of 16 bits, and sorted by each. If at most m bits differ, at least one of any m + 1 bands
agrees (multi-index hashing: Norouzi, Punjani and Fleet, CVPR 2012); the bands that are looked up are those with the
fewest uncertain bits, which may be anything.
"""

from __future__ import annotations

import numpy as np

BAND_BITS = 16
# Share of the certain bits that may differ, and how many have to be certain at least.
MOST_DIFFERENT, FEWEST_CERTAIN = 0.02, 32
# More uncertain bits in the bands that are to be looked up mean too many values: the picture matches nothing then.
MOST_UNCERTAIN = 12


class HashTable:
    """Hashes, uint64 (N, W), sorted by each band."""

    def __init__(self, hashes: np.ndarray) -> None:
        self._hashes = np.ascontiguousarray(hashes)
        bands = _bands(self._hashes)  # N x B
        self._orders = [np.argsort(band, kind="stable") for band in bands.T]
        self._sorted = [band[order] for band, order in zip(bands.T, self._orders, strict=True)]

    def match(self, value: np.ndarray, certain: np.ndarray) -> bool:
        """Whether one of the hashes is that of another version of a picture.

        Args:
            value: its hash, uint64 (W,).
            certain: its certain bits, uint64 (W,).
        """
        count = int(np.bitwise_count(certain).sum())
        if count < FEWEST_CERTAIN or not len(self._hashes):
            return False
        most = int(MOST_DIFFERENT * count)
        masks, values = _bands(certain[None])[0], _bands(value[None])[0]
        uncertain = BAND_BITS - np.bitwise_count(masks)
        for band in np.argsort(uncertain, kind="stable")[: most + 1].tolist():
            if uncertain[band] > MOST_UNCERTAIN:
                return False
            possible = _values(int(values[band]), int(masks[band]))
            low = np.searchsorted(self._sorted[band], possible, "left")
            high = np.searchsorted(self._sorted[band], possible, "right")
            filled = high > low
            for start, end in zip(low[filled].tolist(), high[filled].tolist(), strict=True):
                rows = self._hashes[self._orders[band][start:end]]
                if (np.bitwise_count((rows ^ value) & certain).sum(axis=1) <= most).any():
                    return True
        return False


def _bands(hashes: np.ndarray) -> np.ndarray:
    """Uint64 (N, W) as uint16 (N, 4 W)."""
    return np.ascontiguousarray(hashes).view(np.uint16)


def _values(value: int, mask: int) -> np.ndarray:
    """All values of a band that agree with one in the bits of a mask, uint16 (2 ** uncertain bits,)."""
    values = np.array([value & mask], np.uint16)
    for bit in range(BAND_BITS):
        if not mask >> bit & 1:
            values = np.concatenate([values, values | np.uint16(1 << bit)])
    return values
