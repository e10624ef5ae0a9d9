"""Picture files most written by hand, byte by byte, so that no library decides what is in them."""

import io
import struct
import zlib

import numpy as np

SAMPLE_FORMATS = {"u": 1, "i": 2, "f": 3}


def encode(image, kind="PNG", **options):
    """The bytes of a Pillow image in a format."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def plain_tiff(values, photometric=1):
    """A TIFF of one strip, little-endian, of numbers (height, width) or (height, width, channels) as they are."""
    height, width, channels = values.reshape(*values.shape[:2], -1).shape
    data = values.astype(values.dtype.newbyteorder("<")).tobytes()
    bits = 8 * values.itemsize
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: channels, 278: height}
    tags |= {279: len(data), 339: SAMPLE_FORMATS[values.dtype.kind]}
    content = b"II*\0" + struct.pack("<I", 8 + len(data) + 2 * channels) + data + struct.pack("<H", bits) * channels
    content += struct.pack("<H", len(tags))
    for tag, value in tags.items():
        if tag == 258 and channels > 2:
            # Numbers that do not fit into four bytes lie elsewhere.
            content += struct.pack("<HHII", tag, 3, channels, 8 + len(data))
        else:
            content += struct.pack("<HHII", tag, 4, 1, value)
    return content + bytes(4)


def chunk(kind, data):
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def deep_png(values):
    """A PNG of colours of 16 bits, uint16 (height, width, 3)."""
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tga(alpha, alpha_bits):
    """A row of pixels of 32 bits, from the top, as screenshots and games write them, red, green and blue 30, 20, 10."""
    header = struct.pack("<BBBHHBHHHHBB", 0, 0, 2, 0, 0, 0, 0, 0, len(alpha), 1, 32, 0x20 | alpha_bits)
    return header + b"".join(bytes([10, 20, 30, value]) for value in alpha)


def bmp(alpha):
    """A row of pixels of 32 bits whose header (version 4) has a mask for alpha, red, green and blue 30, 20, 10."""
    pixels = b"".join(bytes([10, 20, 30, value]) for value in alpha)
    header = struct.pack("<IiiHHIIiiII", 108, len(alpha), 1, 1, 32, 3, len(pixels), 2835, 2835, 0, 0)
    header += struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + b"sRGB" + bytes(48)
    start = 14 + len(header)
    return b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + header + pixels


def noise(shape, low, high, dtype, seed=0):
    """Numbers from low to high, alike everywhere."""
    return (low + np.random.default_rng(seed).random(shape) * (high - low)).astype(dtype)
