"""PNG of 16 bits per channel, of which Pillow keeps the upper 8 bits if they are colours.

PNG, third edition (W3C 2025), sections 5.3, 11.2.1, 11.3.2.7 and 13.12.
"""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
from PIL import Image

from hpt_mlflow.data.errors import UnreadableImageError
from hpt_mlflow.data.formats.numbers import Numbers, check_frame, check_size, opened

GREY, RGB, GREY_ALPHA, RGB_ALPHA = 0, 2, 4, 6
CHANNELS = {GREY: 1, RGB: 3, GREY_ALPHA: 2, RGB_ALPHA: 4}
# Where the header has width, height, bits and colour type.
HEADER = struct.Struct(">II BB")
HEADER_AT = 16


def frames(file: Path | bytes) -> int:
    """One; the further images of an animation are left out, as Pillow does."""
    return 1


def read(file: Path | bytes, frame: int) -> Numbers:
    """Numbers uint16. `low` and `high` are declared by a chunk sBIT, which says that all 16 bits are scaled.

    Transparency becomes white: by alpha, or by the number or colour of a chunk tRNS.
    """
    check_frame(frame, 1)
    with opened(file) as stream:
        content = stream.read()
    width, height, bits, kind = HEADER.unpack_from(content, HEADER_AT)
    if bits != 16 or kind not in CHANNELS:
        raise UnreadableImageError(f"{bits} bits of the colour type {kind} are not read here")
    check_size(height, width, CHANNELS[kind], 2)
    chunks = _chunks_before_data(content)
    values = _numbers(content, kind)
    if kind in (GREY_ALPHA, RGB_ALPHA):
        values = _over_white(values[..., :-1], values[..., -1:])
    elif b"tRNS" in chunks:
        clear = np.frombuffer(chunks[b"tRNS"], ">u2", CHANNELS[kind])
        hidden = (values.reshape(height, width, -1) == clear).all(axis=2)
        values = np.where(hidden if kind == GREY else hidden[..., None], np.uint16(65535), values)
    low, high = (0.0, 65535.0) if b"sBIT" in chunks else (None, None)
    return Numbers(values[..., 0] if values.shape[2:] == (1,) else values, low, high)


def _chunks_before_data(content: bytes) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    at = 8
    while at + 8 <= len(content):
        length, name = struct.unpack_from(">I4s", content, at)
        if name == b"IDAT":
            break
        found[name] = content[at + 8 : at + 8 + length]
        at += 12 + length
    return found


def _numbers(content: bytes, kind: int) -> np.ndarray:
    """uint16 (height, width) or (height, width, channels), from the bytes that Pillow unpacks as channels of 8 bits."""
    if kind == GREY:
        return _unpacked(content, "I;16", "I;16B").astype(np.uint16)
    if kind == GREY_ALPHA:
        # Two numbers of two bytes are as long as a pixel of four.
        return np.ascontiguousarray(_unpacked(content, "RGBA", "RGBA")).view(">u2").astype(np.uint16)
    mode = "RGB" if kind == RGB else "RGBA"
    # As if they were little-endian, the lower byte is what Pillow takes for the upper one.
    upper, lower = (_unpacked(content, mode, f"{mode};16{order}") for order in "BL")
    return upper.astype(np.uint16) << 8 | lower


def _unpacked(content: bytes, mode: str, raw: str) -> np.ndarray:
    with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
        image._mode = mode
        image.tile = [tile._replace(args=raw) for tile in image.tile]
        return np.array(image)


def _over_white(values: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha.astype(np.float32) / 65535
    return np.where(alpha == 65535, values, np.round(values * share + 65535 * (1 - share))).astype(np.uint16)
