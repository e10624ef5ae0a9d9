import io
import sys
import tracemalloc
import zlib

import numpy as np
import pytest
import tifffile
from picture_files import encode
from PIL import Image

from hpt_mlflow.data.errors import UnreadableImageError
from hpt_mlflow.data.formats import registry

RNG = np.random.default_rng(0)


def tiff_of(values, **options):
    """The bytes of a TIFF that tifffile writes."""
    stream = io.BytesIO()
    tifffile.imwrite(stream, values, **options)
    return stream.getvalue()


def numbers(shape, dtype):
    if np.dtype(dtype).kind == "f":
        return RNG.normal(0, 1000, shape).astype(dtype)
    limits = np.iinfo(dtype)
    return RNG.integers(limits.min, limits.max, shape, dtype, endpoint=True)


def assert_read(values, content, frame=0):
    read = registry.read(content, frame)
    assert read.values.dtype == values.dtype.newbyteorder("=")
    np.testing.assert_array_equal(read.values, values)
    return read


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "f2", "f4", "f8"])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_numbers_of_every_type_stay_as_they_are(dtype, byteorder):
    values = numbers((7, 5, 6), dtype)
    assert_read(values, tiff_of(values, photometric="minisblack", planarconfig="contig", byteorder=byteorder))


@pytest.mark.parametrize("layout", [{}, {"tile": (16, 32)}, {"rowsperstrip": 3}, {"bigtiff": True}])
@pytest.mark.parametrize("compression", [None, "zlib", "lzw", "packbits", "zstd", "lzma"])
def test_bands_keep_their_order_however_they_are_stored(layout, compression):
    values = numbers((40, 50, 13), "u2")
    options = {"photometric": "minisblack", "compression": compression, **layout}
    assert_read(values, tiff_of(values, planarconfig="contig", **options))
    assert_read(values, tiff_of(np.moveaxis(values, 2, 0).copy(), planarconfig="separate", **options))


@pytest.mark.parametrize("dtype", ["u2", "f4"])
def test_differences_and_jpeg_2000_are_undone(dtype):
    values = numbers((20, 30), dtype)
    assert_read(values, tiff_of(values, predictor=True, compression="zlib"))
    if dtype == "u2":
        assert_read(values, tiff_of(values, compression="jpeg2000", compressionargs={"reversible": True, "level": 0}))


def test_pages_are_images_and_their_thumbnails_are_not():
    pages = [numbers((8, 9), "u2"), numbers((5, 4), "u2"), numbers((8, 9), "u2")]
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as writer:
        for page in pages:
            writer.write(page)
            writer.write(page[::2, ::2], subfiletype=1)
    assert registry.frames(stream.getvalue()) == 3
    for number, page in enumerate(pages):
        assert_read(page, stream.getvalue(), number)
    with pytest.raises(UnreadableImageError, match="no image 3, only 3"):
        registry.read(stream.getvalue(), 3)


def test_a_file_is_read_as_its_bytes_are(tmp_path):
    values = numbers((8, 9, 4), "u2")
    file = tmp_path / "a.TIF"
    file.write_bytes(tiff_of(values, photometric="rgb", extrasamples=["unspecified"]))
    assert_read(values, file)


def test_8_bit_grey_and_colour_stay_with_pillow():
    colours = Image.fromarray(numbers((6, 5, 3), "u1"))
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"):
        assert registry.format_of(encode(colours.convert(mode), "TIFF")) is None
    for compression in ("jpeg", "tiff_lzw", "tiff_adobe_deflate"):
        assert registry.format_of(encode(colours, "TIFF", compression=compression)) is None
    # RGB and infrared, as GDAL writes it, whose fourth band Pillow drops.
    bands = numbers((6, 5, 4), "u1")
    content = tiff_of(bands, photometric="rgb", extrasamples=["unspecified"])
    assert Image.open(io.BytesIO(content)).mode == "RGB"
    assert_read(bands, content)


def test_alpha_is_no_band():
    values = numbers((6, 5, 4), "u2")
    assert_read(values[..., :3], tiff_of(values, photometric="rgb", extrasamples=["unassalpha"]))
    values = numbers((6, 5, 2), "u2")
    assert_read(values[..., 0], tiff_of(values, photometric="minisblack", extrasamples=["assocalpha"]))


def test_only_what_the_file_declares_is_its_range():
    values = np.arange(12, dtype=np.uint16).reshape(3, 4) * 300
    read = registry.read(tiff_of(values))
    assert (read.low, read.high, read.nodata) == (None, None, None)
    tags = [(280, "H", 1, 0, True), (281, "H", 1, 4095, True), (42113, "s", 0, "-9999", True)]
    read = registry.read(tiff_of(values, extratags=tags))
    assert (read.low, read.high, read.nodata) == (0, 4095, -9999)
    real = values.astype(np.float32) / 7
    tags = [(340, "f", 1, -1.5, True), (341, "f", 1, 2.5, True), (42113, "s", 0, "nan", True)]
    read = registry.read(tiff_of(real, extratags=tags))
    assert (read.low, read.high) == (-1.5, 2.5)
    assert np.isnan(read.nodata)
    assert registry.read(tiff_of(real, extratags=[(42113, "s", 0, "none", True)])).nodata is None


def test_white_is_zero_is_turned_round():
    values = np.array([[0, 1, 4095]], np.uint16)
    read = registry.read(tiff_of(values, photometric="miniswhite"))
    assert read.values.tolist() == [[65535, 65534, 61440]]
    assert (read.low, read.high) == (None, None)
    tags = [(280, "H", 1, 0, True), (281, "H", 1, 4000, True)]
    read = registry.read(tiff_of(values, photometric="miniswhite", extratags=tags))
    assert (read.values.tolist(), read.low, read.high) == ([[4000, 3999, 0]], 0, 4000)
    read = registry.read(tiff_of(values.astype("f4"), photometric="miniswhite"))
    assert read.values.tolist() == [[0, -1, -4095]]
    read = registry.read(tiff_of(np.array([[0, 0.25, 1]], "f4"), photometric="miniswhite"))
    assert read.values.tolist() == [[1, 0.75, 0]]


def refused(content, words):
    with pytest.raises(UnreadableImageError, match=words) as caught:
        registry.read(content)
    assert "\n" not in str(caught.value)


def test_sizes_are_checked_before_memory_is_taken():
    content = tiff_of(numbers((30, 40), "u2"), compression="zlib")
    for tag in (256, 257):
        at = content.index(tag.to_bytes(2, "little") + b"\4\0\1\0\0\0", 8)
        large = bytearray(content)
        large[at + 8 : at + 12] = (400_000_000).to_bytes(4, "little")
        refused(bytes(large), "too many; cut the image into tiles")
    refused(tiff_of(np.zeros((16, 16), "c8")), "not pixels")


def test_a_segment_that_inflates_to_more_than_its_room_is_refused():
    bomb = zlib.compress(bytes(1 << 28))
    content = tiff_of(np.zeros((30, 40), "u2"), compression="zlib")
    tags = {tag.code: tag for tag in tifffile.TiffFile(io.BytesIO(content)).pages[0].tags}
    large = bytearray(content)
    for tag, value in ((273, len(content)), (279, len(bomb))):
        at = tags[tag].valueoffset
        size = {3: 2, 4: 4}[tags[tag].dtype]
        large[at : at + size] = min(value, 65535 if size == 2 else value).to_bytes(size, "little")
    tracemalloc.start()
    with pytest.raises(UnreadableImageError):
        registry.read(bytes(large) + bomb)
    assert tracemalloc.get_traced_memory()[1] < 1 << 25
    tracemalloc.stop()


def test_without_imagecodecs_packed_tiffs_name_what_to_install(monkeypatch):
    values = numbers((6, 5), "u2")
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    refused(PACKED, "imagecodecs.*hpt_mlflow\\[tiff\\]")
    assert_read(values, tiff_of(values))


PACKED = tiff_of(np.zeros((6, 5), "u2"), compression="zlib")


def test_without_tifffile_pillow_reads_what_it_can(monkeypatch):
    monkeypatch.setattr(registry, "find_spec", lambda name: None)
    registry.missing.cache_clear()
    try:
        assert registry.format_of(PACKED) is None
        assert registry.frames(PACKED) == 1
    finally:
        registry.missing.cache_clear()
