"""From any file that Pillow opens to RGB, the way a person would expect to see it."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from hpt_mlflow.errors import one_line

# A picture as a dataset may hold it.
Encoded = Path | bytes | np.ndarray | Image.Image

# More pixels than any camera gives; Pillow's own bound against decompression bombs only warns below twice this.
MOST_PIXELS = 180_000_000


class UnreadableImageError(Exception):
    """Why one image could not be decoded."""


def decode(picture: Encoded, smallest_side: int | None = None) -> np.ndarray:
    """Decode a picture to RGB.

    Args:
        picture: a file, its bytes, an array (height, width) or (height, width, 1, 3 or 4) of uint8 or uint16, or an
            open Pillow image.
        smallest_side: reduce the picture so that its shorter side has at most this many pixels.

    Returns:
        uint8 (height, width, 3).

    Raises:
        UnreadableImageError: it is no picture, is damaged, or has more than `MOST_PIXELS` pixels.
    """
    try:
        with _open(picture) as image:
            if not image.width * image.height:
                raise UnreadableImageError("it has no pixels")
            if image.width * image.height > MOST_PIXELS:
                raise UnreadableImageError(f"{image.width} x {image.height} pixels are too many")
            if smallest_side and image.format == "JPEG":
                image.draft(None, (smallest_side, smallest_side))
            image = _reduce(to_rgb(_upright(image)), smallest_side)
            return np.asarray(image)
    except UnreadableImageError:
        raise
    # Pillow's decoders raise almost anything on damaged data.
    except Exception as error:
        raise UnreadableImageError(f"{type(error).__name__}: {one_line(error)}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB: transparency over white, deep grey scaled to 8 bits, everything else as Pillow converts it."""
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image)
        shown = _to_8_bits(values)
        if "transparency" in image.info:
            shown = np.where(values == image.info["transparency"], np.uint8(255), shown)
        return Image.fromarray(shown).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(background, image).convert("RGB")
    return image.convert("RGB")


def _open(picture: Encoded) -> Image.Image:
    if isinstance(picture, Image.Image):
        return picture.copy()
    if isinstance(picture, bytes):
        return Image.open(io.BytesIO(picture))
    if isinstance(picture, np.ndarray):
        if picture.ndim == 3 and picture.shape[2] == 1:
            picture = picture[:, :, 0]
        return Image.fromarray(picture if picture.dtype == np.uint8 else _to_8_bits(picture))
    return Image.open(picture)


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF data says; damage in what is only said about a picture does not make it unreadable."""
    try:
        return ImageOps.exif_transpose(image)
    except (SyntaxError, ValueError, TypeError, KeyError, OSError):
        image.load()
        return image


def _to_8_bits(values: np.ndarray) -> np.ndarray:
    """Scale by the range that the numbers are meant in: 16 bits, [0, 1], 8 bits, or else their own extremes."""
    low, high = float(values.min(initial=0)), float(values.max(initial=0))
    if not np.isfinite(low + high):
        raise UnreadableImageError("it holds numbers that are not finite")
    if (values.dtype.kind == "u" and values.dtype.itemsize == 2) or (low >= 0 and 255 < high <= 65535):
        scaled = values / 257
    elif values.dtype.kind == "f" and low >= 0 and high <= 1:
        scaled = values * 255.0
    elif low >= 0 and high <= 255:
        scaled = values
    else:
        scaled = (values - low) * (255 / (high - low))
    return np.round(scaled).astype(np.uint8)


def _reduce(image: Image.Image, smallest_side: int | None) -> Image.Image:
    shorter = min(image.size)
    if not smallest_side or shorter <= smallest_side:
        return image
    scale = smallest_side / shorter
    size = (max(smallest_side, round(image.width * scale)), max(smallest_side, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BILINEAR, reducing_gap=3.0)
