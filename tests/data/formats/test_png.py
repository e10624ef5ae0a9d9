import struct

import imagecodecs
import numpy as np
import pytest
from picture_files import chunk, deep_png, encode
from PIL import Image

from hpt_mlflow.data.errors import UnreadableImageError
from hpt_mlflow.data.formats import registry

RNG = np.random.default_rng(0)


def with_chunk(content, name, data):
    """The PNG with a chunk after its header."""
    return content[:33] + chunk(name, data) + content[33:]


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("level", [0, 9])
def test_all_16_bits_are_read_as_libpng_reads_them(channels, level, tmp_path):
    values = RNG.integers(0, 65536, (23, 17, channels), dtype=np.uint16)
    values[..., channels - 1] = 65535 if channels in (2, 4) else values[..., channels - 1]
    content = imagecodecs.png_encode(values, level=level)
    theirs = imagecodecs.png_decode(content)
    (tmp_path / "a.png").write_bytes(content)
    wanted = values[..., : channels - 1] if channels in (2, 4) else values
    np.testing.assert_array_equal(theirs.reshape(values.shape), values)
    for file in (content, tmp_path / "a.png"):
        assert registry.frames(file) == 1
        read = registry.read(file)
        np.testing.assert_array_equal(read.values.reshape(wanted.shape), wanted)
        assert (read.values.dtype, read.low, read.high) == (np.uint16, None, None)
    assert read.values.ndim == (2 if wanted.shape[2] == 1 else 3)


def test_all_levels_of_12_bits_are_told_apart():
    values = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    assert len(np.unique(registry.read(encode(Image.fromarray(values))).values)) == 4096
    colours = np.stack([values, values[::-1], values.T], 2)
    np.testing.assert_array_equal(registry.read(deep_png(colours)).values, colours)


def test_significant_bits_declare_the_full_range():
    content = with_chunk(encode(Image.fromarray(np.full((3, 4), 0xFFF0, np.uint16))), b"sBIT", b"\x0c")
    read = registry.read(content)
    assert (read.low, read.high) == (0, 65535)


def test_transparency_is_white():
    values = np.array([[0, 5, 65535]], np.uint16)
    content = with_chunk(encode(Image.fromarray(values)), b"tRNS", struct.pack(">H", 5))
    assert registry.read(content).values.tolist() == [[0, 65535, 65535]]
    colours = np.array([[[1, 2, 3], [1, 2, 4]]], np.uint16)
    content = with_chunk(deep_png(colours), b"tRNS", struct.pack(">HHH", 1, 2, 3))
    assert registry.read(content).values.tolist() == [[[65535] * 3, [1, 2, 4]]]
    half = np.array([[[1000, 32768], [1000, 0], [1000, 65535]]], np.uint16)
    values = registry.read(imagecodecs.png_encode(half)).values
    np.testing.assert_allclose(values, [[1000 * 0.5 + 65535 * 0.5, 65535, 1000]], atol=1)


def test_8_bits_stay_with_pillow():
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        assert registry.format_of(encode(Image.new(mode, (3, 4)))) is None


def test_damaged_files_are_refused():
    content = deep_png(RNG.integers(0, 65536, (9, 8, 3), dtype=np.uint16))
    with pytest.raises(UnreadableImageError):
        registry.read(content[:80])
    large = content[:16] + struct.pack(">II", 60000, 60000) + content[24:]
    with pytest.raises(UnreadableImageError, match="60000 x 60000 x 3 pixels are too many"):
        registry.read(large)
