"""What a compressed image says of its size, so that a decoder does not make room for one that is too large.

JPEG: ITU-T T.81, B.2.2. JPEG-LS: T.87, C.2.2. JPEG 2000: T.800, A.5.1.
"""

from __future__ import annotations

import struct

from hpt_mlflow.data.errors import UnreadableImageError

JPEG_START, JPEG_2000_START = b"\xff\xd8\xff", b"\xff\x4f\xff\x51"
# SOF0 to SOF15 without DHT, JPG and DAC; and that of JPEG-LS.
FRAME_HEADERS = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})
# Markers without a length: TEM, and restarts.
LONE = frozenset({0x01, *range(0xD0, 0xD9)})
# Components of a picture; more would be another way to ask for memory.
MOST_COMPONENTS = 4


def check_codestream(data: bytes, height: int, width: int) -> None:
    """Refuse a compressed image that declares another size than the header of its file; other data is not looked at.

    Raises:
        UnreadableImageError: its size, or number of components, is another one.
    """
    declared = codestream_size(data)
    if declared is None:
        return
    own_height, own_width, components = declared
    if (own_height, own_width) != (height, width) or components > MOST_COMPONENTS:
        raise UnreadableImageError(
            f"its header declares {width} x {height} pixels, its compressed data {own_width} x {own_height}"
            + (f" of {components} components" if components > MOST_COMPONENTS else "")
        )


def codestream_size(data: bytes) -> tuple[int, int, int] | None:
    """Height, width and components that a JPEG, JPEG-LS or JPEG 2000 declares; None for anything else."""
    # A JPEG 2000 may lie in the boxes of a JP2 file.
    at = data.find(JPEG_2000_START, 0, 4096)
    if at >= 0 and not data.startswith(JPEG_START):
        if len(data) < at + 42:
            return None
        right, bottom, left, top = struct.unpack_from(">4I", data, at + 8)
        return bottom - top, right - left, struct.unpack_from(">H", data, at + 40)[0]
    return _jpeg_size(data) if data.startswith(JPEG_START) else None


def _jpeg_size(data: bytes) -> tuple[int, int, int] | None:
    at = 2
    while at + 10 <= len(data):
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
        elif marker in LONE:
            at += 2
        elif marker in FRAME_HEADERS:
            height, width, components = struct.unpack_from(">HHB", data, at + 5)
            return height, width, components
        else:
            at += 2 + struct.unpack_from(">H", data, at + 2)[0]
    return None
