"""From any picture to pixels, the way a person would expect to see it."""

from __future__ import annotations

import numpy as np
import PIL
from PIL import Image

from hpt_mlflow.augment.crop import resize, resize_pixels
from hpt_mlflow.data.errors import UnreadableImageError, explaining
from hpt_mlflow.data.formats.numbers import Numbers
from hpt_mlflow.data.numbers import read_numbers, scale, to_pixels
from hpt_mlflow.data.pictures import (
    BYTES_PER_PIXEL,
    Encoded,
    Stack,
    checked_pixels,
    in_format,
    open_picture,
    pillow_opens,
    read_format,
    turn,
    upright,
    upright_copy,
)
from hpt_mlflow.data.rgb import to_8_bits, to_rgb
from hpt_mlflow.pixels import RGB, PixelFormat

# Version of how pictures become pixels here; raise it with any change.
CONVERSION = 5
# Squares of the smallest side that are kept of a strip: longer ones would fill the memory with what no crop shows.
LONGEST_STRIP = 64


def conversion() -> str:
    """What decides which pixels a file becomes; cached pixels are valid for the same conversion only."""
    return f"{CONVERSION}-{PIL.__version__}"


def decode(picture: Encoded, smallest_side: int | None = None, pixels: PixelFormat = RGB) -> np.ndarray:
    """Decode a picture.

    Args:
        picture: a file, its bytes, one of several images in a file, an array (height, width) or (height, width, bands),
            or an open Pillow image.
        smallest_side: reduce the picture so that its shorter side has at most this many pixels; of a very long strip,
            keep the middle.
        pixels: what to decode it to. For 8-bit RGB, deep grey is scaled by the range that its numbers suggest.

    Returns:
        uint8 or uint16 (height, width, channels).

    Raises:
        UnreadableImageError: it is not a picture, is damaged, lacks bands, has more than `MOST_PIXELS` pixels, or is a
            file of more than `MOST_BYTES` or not a regular file.
    """
    with explaining():
        if not pixels.is_rgb:
            return _reduce_pixels(to_pixels(read_numbers(picture), pixels), smallest_side)
        if isinstance(picture, Stack):
            picture = read_numbers(picture).values
        # Deep pictures that Pillow opens are shown as it always showed them.
        if in_format(picture) and not pillow_opens(picture) and (found := read_format(picture)) is not None:
            picture = _shown(found)
        elif isinstance(picture, np.ndarray) and picture.dtype != np.uint8:
            picture = to_8_bits(picture)
        with open_picture(picture) as image, turn(BYTES_PER_PIXEL * checked_pixels(image)):
            if smallest_side and image.format == "JPEG" and image is not picture:
                image.draft(None, (smallest_side, smallest_side))
            turned = upright_copy(image) if image is picture else upright(image)
            return np.asarray(_reduce(to_rgb(turned), smallest_side))


def _shown(found: Numbers) -> np.ndarray:
    """The numbers of a file as 8 bits, from the range that it declares, or else from the one that they suggest."""
    values = found.values
    if values.ndim == 3 and values.shape[2] not in (1, 3):
        raise UnreadableImageError(f"it has {values.shape[2]} bands, where most images are grey or RGB")
    if values.dtype == np.uint8 and (found.low, found.high) in ((0, 255), (None, None)):
        return values
    if found.low is None or found.high is None:
        return to_8_bits(values)
    bands = values.reshape(*values.shape[:2], -1)
    return scale(bands, [found.low], [found.high], RGB.dtype)


def _reduce(image: Image.Image, smallest_side: int | None) -> Image.Image:
    if not smallest_side:
        return image
    left, top, width, height = _reduced(image.width, image.height, smallest_side)
    if left or top:
        image = image.crop((left, top, image.width - left, image.height - top))
    return image if (width, height) == image.size else resize(image, width, height)


def _reduce_pixels(image: np.ndarray, smallest_side: int | None) -> np.ndarray:
    if not smallest_side:
        return image
    left, top, width, height = _reduced(image.shape[1], image.shape[0], smallest_side)
    image = image[top : image.shape[0] - top, left : image.shape[1] - left]
    return np.ascontiguousarray(image if image.shape[:2] == (height, width) else resize_pixels(image, width, height))


def _reduced(width: int, height: int, smallest_side: int) -> tuple[int, int, int, int]:
    """What to cut off on the left and right, and at the top and bottom, of a strip; and the size to resize to."""
    shorter = min(width, height)
    kept = min(shorter, smallest_side)
    longest = LONGEST_STRIP * smallest_side**2 * shorter // kept**2
    left, top = max(0, width - longest) // 2, max(0, height - longest) // 2
    width, height = width - 2 * left, height - 2 * top
    if shorter <= smallest_side:
        return left, top, width, height
    scale = smallest_side / shorter
    return left, top, max(smallest_side, round(width * scale)), max(smallest_side, round(height * scale))
