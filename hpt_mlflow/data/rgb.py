"""From the colours of a picture to 8-bit RGB, the way a person would expect to see them."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from hpt_mlflow.data.errors import UnreadableImageError
from hpt_mlflow.data.pictures import tags_of

TIFF_BITS, TIFF_PHOTOMETRIC = 258, 262
TIFF_EXTRA_SAMPLES, TIFF_SAMPLE_FORMAT = 338, 339
MIN_IS_WHITE, UNSIGNED, SIGNED = 0, 1, 2
# Formats whose fourth channel programs often leave at zero without meaning transparency.
UNFILLED_ALPHA = frozenset(["TGA", "BMP", "DIB"])
ROWS_AT_ONCE = 64


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB: transparency over white, deep grey scaled to 8 bits, everything else as Pillow converts it."""
    if is_deep(image):
        values = grey_values(image)
        shown = to_8_bits(values)
        if is_inverted(image):
            shown = 255 - shown
        if "transparency" in image.info:
            shown = np.where(values == image.info["transparency"], np.uint8(255), shown)
        return Image.fromarray(shown).convert("RGB")
    if image.has_transparency_data:
        coloured = _in_mode("RGBA", image)
        if not _has_unused_alpha(image, coloured.getchannel("A")):
            background = Image.new("RGB", image.size, "white")
            background.paste(coloured, mask=coloured)
            return background
    return _in_mode("RGB", image)


def _has_unused_alpha(image: Image.Image, alpha: Image.Image) -> bool:
    """Whether a picture's alpha, from its last channel or its palette, does not mean transparency.

    It is unused if it is zero throughout, in a format that often leaves it unfilled or in a TIFF that does not explain
    it. A PNG or WebP that is transparent throughout is meant so: white.
    """
    unexplained = image.format == "TIFF" and TIFF_EXTRA_SAMPLES not in tags_of(image)
    return (image.format in UNFILLED_ALPHA or unexplained) and alpha.getbbox() is None


def _in_mode(mode: str, image: Image.Image) -> Image.Image:
    """Converted, but not copied if it already has the mode."""
    return image if image.mode == mode else image.convert(mode)


def is_deep(image: Image.Image) -> bool:
    """Whether the numbers of a grey picture are not those of 8 bits from black to white."""
    is_signed = image.mode == "L" and tags_of(image).get(TIFF_SAMPLE_FORMAT) == (SIGNED,)
    return is_signed or image.mode.startswith(("I", "F"))


def grey_values(image: Image.Image) -> np.ndarray:
    """The numbers of a deep picture; Pillow knows only signed 32 bits and unsigned 8 bits."""
    values = np.asarray(image)
    # Pillow scales those of a PGM to 16 bits, and keeps them in 32.
    if image.format == "PPM" and values.dtype == np.int32:
        return values.astype(np.uint16)
    tags = tags_of(image)
    unsigned = tags.get(TIFF_BITS) == (32,) and tags.get(TIFF_SAMPLE_FORMAT, (UNSIGNED,)) == (UNSIGNED,)
    if values.dtype == np.int32 and unsigned:
        return values.view(np.uint32)
    return values.view(np.int8) if values.dtype == np.uint8 else values


def is_inverted(image: Image.Image) -> bool:
    """Whether the numbers of a deep picture fall from black to white. Pillow turns those of 8 bits only."""
    return tags_of(image).get(TIFF_PHOTOMETRIC) == MIN_IS_WHITE


def has_halved_colours(image: Image.Image) -> bool:
    """Whether a file has colours of 16 bits, of which Pillow reads the upper 8."""
    tiles: list[Any] = getattr(image, "tile", [])
    return image.format in ("PNG", "TIFF") and not is_deep(image) and any(";16" in str(tile[3]) for tile in tiles)


def to_8_bits(values: np.ndarray) -> np.ndarray:
    """Scale to uint8 from the range that the numbers suggest: bool, 16 bits, [0, 1], 8 bits, or their own extremes."""
    if values.dtype == bool:
        return values.astype(np.uint8) * 255
    low, high = float(values.min(initial=0)), float(values.max(initial=0))
    if not np.isfinite(high - low):
        raise UnreadableImageError("it has numbers that are not finite")
    shown = np.empty(values.shape, np.uint8)
    # Differences of numbers far apart or close together do not fit into 32 bits, let alone 16.
    is_coarse = values.dtype.kind == "f" and (values.dtype.itemsize == 2 or not 1e-30 < high - low < 1e30)
    # Scaling everything at once would take eight times the memory.
    for start in range(0, len(values), ROWS_AT_ONCE):
        rows = values[start : start + ROWS_AT_ONCE]
        if low < 0 or high > 65535:
            rows = ((rows.astype(np.float64) if is_coarse else rows) - low) * (255 / (high - low))
        elif (values.dtype.kind == "u" and values.dtype.itemsize == 2) or high > 255:
            rows = rows / 257
        elif values.dtype.kind == "f" and high <= 1:
            rows = rows * 255.0
        shown[start : start + ROWS_AT_ONCE] = np.round(rows)
    return shown
