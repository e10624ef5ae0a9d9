import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from picture_files import bmp, chunk, deep_png, encode, plain_tiff, tga
from PIL import Image

from hpt_mlflow.data import pictures
from hpt_mlflow.data.decode import decode
from hpt_mlflow.data.errors import UnreadableImageError
from hpt_mlflow.data.numbers import is_plain, read_numbers
from hpt_mlflow.data.rgb import to_rgb

WHITE = [255, 255, 255]
COLOURS = np.array([[[255, 0, 0], [0, 160, 40]], [[20, 30, 200], [128, 128, 128]]], dtype=np.uint8)


def deep_grey(values):
    return Image.fromarray(np.array(values, dtype=np.uint16))


def big_endian_tiff(values):
    """A 16-bit grey TIFF in the byte order of Motorola, as microscopes and scanners write it."""
    height, width = values.shape
    data = values.astype(">u2").tobytes()
    tags = [(256, width), (257, height), (258, 16), (259, 1), (262, 1), (273, 8), (277, 1), (278, height)]
    entries = b"".join(struct.pack(">HHIHH", tag, 3, 1, value, 0) for tag, value in tags)
    entries += struct.pack(">HHII", 279, 4, 1, len(data))
    return b"MM\0*" + struct.pack(">I", 8 + len(data)) + data + struct.pack(">H", 9) + entries + bytes(4)


def palette(colours, entries):
    """A row of the first entries of a palette."""
    image = Image.frombytes("P", (entries, 1), bytes(range(entries)))
    image.putpalette(colours)
    return image


def grey(values):
    return Image.fromarray(np.array([values], dtype=np.uint8))


def palette_tga(alphas):
    """A TGA of a palette with alpha, of colours 30, 20, 10 and 60, 50, 40."""
    header = struct.pack("<BBBHHBHHHHBB", 0, 1, 1, 0, len(alphas), 32, 0, 0, len(alphas), 1, 8, 0x20)
    colours = b"".join(bytes([10 + 30 * i, 20 + 30 * i, 30 + 30 * i, alpha]) for i, alpha in enumerate(alphas))
    return header + colours + bytes(range(len(alphas)))


RED, PALETTE = [200, 0, 0], [9, 8, 7, 200, 0, 0, 0, 0, 250]
CLEAR_RED = np.array([[[255, 0, 0, 0], [255, 0, 0, 128], [255, 0, 0, 255]]], dtype=np.uint8)


@pytest.mark.parametrize(
    ("picture", "shown"),
    [
        (encode(Image.fromarray(COLOURS)), COLOURS),
        (encode(grey([0, 255]).convert("1")), [[0, 255]]),
        (encode(grey([0, 77, 255])), [[0, 77, 255]]),
        (encode(grey([5, 9]), transparency=9), [[5, 255]]),
        (encode(palette(PALETTE, 3)), [[[9, 8, 7], RED, [0, 0, 250]]]),
        (encode(palette(PALETTE, 3), transparency=1), [[[9, 8, 7], WHITE, [0, 0, 250]]]),
        (encode(palette(PALETTE, 3), "GIF", transparency=1), [[[9, 8, 7], WHITE, [0, 0, 250]]]),
        (encode(palette([0, 0, 0, *RED], 2), transparency=bytes([128, 255])), [[[127] * 3, RED]]),
        (encode(Image.fromarray(COLOURS), transparency=(255, 0, 0)), [[WHITE, COLOURS[0, 1]], COLOURS[1]]),
        (encode(Image.fromarray(CLEAR_RED)), [[WHITE, [255, 127, 127], [255, 0, 0]]]),
        (encode(Image.frombytes("LA", (3, 1), bytes([0, 0, 0, 128, 0, 255]))), [[255, 127, 0]]),
        (encode(Image.new("RGBA", (2, 1), (30, 20, 10, 0))), [[255, 255]]),
        (encode(Image.new("RGBA", (2, 1), (30, 20, 10, 0)), "TIFF"), [[255, 255]]),
        (palette_tga([0]), [[[30, 20, 10]]]),
        (palette_tga([0, 255]), [[WHITE, [60, 50, 40]]]),
        (deep_png(np.array([[[0, 25_700, 65_535]]], np.uint16)), [[[0, 100, 255]]]),
        (plain_tiff(np.array([[[0, 25_700, 65_535]]], np.uint16), photometric=2), [[[0, 100, 255]]]),
    ],
)
def test_what_a_picture_shows(picture, shown):
    decoded, shown = decode(picture), np.array(shown)
    assert decoded.dtype == np.uint8
    expected = shown if shown.ndim == 3 else np.repeat(shown[..., None], 3, axis=2)
    np.testing.assert_allclose(decoded.astype(int), expected, atol=1)


# Values of 16 bits and more, and what is shown of them.
DEEP = [0, 257, 128 * 257, 65535]


@pytest.mark.parametrize(
    ("picture", "shown"),
    [
        (encode(deep_grey([DEEP])), [0, 1, 128, 255]),
        (encode(deep_grey([DEEP]), "TIFF"), [0, 1, 128, 255]),
        (encode(deep_grey([DEEP]), transparency=5), [0, 1, 128, 255]),
        (big_endian_tiff(np.array([DEEP])), [0, 1, 128, 255]),
        (encode(deep_grey([[0, 100, 200, 255]])), [0, 0, 1, 1]),
        (big_endian_tiff(np.array([[0, 100, 200, 255]])), [0, 0, 1, 1]),
        (b"P5 3 1 65535\n" + struct.pack(">3H", 0, 120, 250), [0, 0, 1]),
        (b"P5 3 1 1000\n" + struct.pack(">3H", 0, 120, 250), [0, 31, 64]),
        *[
            (encode(Image.fromarray(np.array([values], dtype=np.int32)), "TIFF"), shown)
            for values, shown in [
                ([0, 128, 255], [0, 128, 255]),
                ([0, 128 * 257, 65535], [0, 128, 255]),
                ([0, 50_000, 100_000], [0, 128, 255]),
                ([-100, 0, 155], [0, 100, 255]),
                ([7, 7, 7], [7, 7, 7]),
                ([-7, -7, -7], [0, 0, 0]),
            ]
        ],
        *[
            (encode(Image.fromarray(np.array([values], dtype=np.float32)), "TIFF"), shown)
            for values, shown in [
                ([0.0, 0.5, 1.0], [0, 128, 255]),
                ([0.0, 100.0, 255.0], [0, 100, 255]),
                ([0.0, 128 * 257.0, 65535.0], [0, 128, 255]),
                ([-1.0, 0.0, 1.0], [0, 128, 255]),
            ]
        ],
        (plain_tiff(np.array([[0, (2**32 - 1) // 255 * 100, 2**32 - 1]], np.uint32)), [0, 100, 255]),
        (plain_tiff(np.array([[-1000, -200, 1000]], np.int32)), [0, 102, 255]),
        (plain_tiff(np.array([[-1000, -200, 1000]], np.int16)), [0, 102, 255]),
        (plain_tiff(np.array([[-100, -20, 100]], np.int8)), [0, 102, 255]),
        *[
            (np.array([[-largest, 0, largest]], dtype), [0, 128, 255])
            for dtype, largest in [("f2", 60_000), ("f4", 3e38), ("f8", 1e300), ("f2", 1e-5), ("f4", 1e-38)]
        ],
    ],
)
def test_numbers_are_scaled_by_the_range_that_they_are_meant_in(picture, shown):
    decoded = decode(picture)
    assert decoded[0, :, 0].tolist() == shown
    assert (decoded == decoded[:, :, :1]).all()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "RGBX", "RGBa", "YCbCr", "HSV", "LAB", "CMYK"])
def test_every_colour_mode_shows_the_same_colours(mode):
    image = Image.fromarray(COLOURS)
    image = image.convert("RGBA").convert("RGBa") if mode == "RGBa" else image.convert(mode)
    assert image.mode == mode
    np.testing.assert_allclose(decode(image).astype(int), COLOURS, atol=12 if mode == "LAB" else 4)


@pytest.mark.parametrize(("mode", "kind"), [("CMYK", "JPEG"), ("CMYK", "TIFF"), ("LAB", "TIFF"), ("YCbCr", "TIFF")])
def test_files_of_other_colour_modes_show_the_same_colours(mode, kind):
    large = Image.fromarray(COLOURS).resize((32, 32), Image.Resampling.NEAREST)
    file = encode(large.convert(mode), kind, **({"quality": 95} if kind == "JPEG" else {}))
    assert Image.open(io.BytesIO(file)).mode == mode
    np.testing.assert_allclose(decode(file)[4::16, 4::16].astype(int), COLOURS, atol=12)


def test_all_rows_of_a_high_picture_of_sixteen_bits_are_scaled():
    values = np.arange(200).reshape(200, 1)
    np.testing.assert_array_equal(decode(encode(deep_grey(values * 257)))[:, :, 0], values)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused(value):
    with pytest.raises(UnreadableImageError, match="not finite"):
        decode(Image.fromarray(np.array([[0.0, value]], dtype=np.float32)))


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [(1, lambda a: a), (2, np.fliplr), (3, lambda a: np.rot90(a, 2)), (6, lambda a: np.rot90(a, -1)), (8, np.rot90)],
)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_a_picture_is_turned_as_its_camera_was_held(orientation, turn, kind):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = encode(Image.fromarray(pixels), kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    np.testing.assert_array_equal(decode(file), turn(pixels))


def test_a_jpeg_is_turned_before_it_is_reduced():
    exif = Image.Exif()
    exif[0x0112] = 6
    file = encode(Image.new("RGB", (400, 200), "red"), "JPEG", exif=exif)
    assert decode(file, smallest_side=50).shape == (100, 50, 3)


@pytest.mark.parametrize(
    "kind",
    [
        "JPEG",
        "PNG",
        "WEBP",
    ],
)
def test_a_good_picture_with_damaged_exif_is_decoded(kind):
    file = encode(Image.new("RGB", (8, 8), "red"), kind, exif=b"Exif\0\0damaged!")
    assert decode(file).shape == (8, 8, 3)


def test_an_animation_is_its_first_frame():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue", "lime")]
    for kind in ("GIF", "PNG", "TIFF"):
        file = encode(frames[0], kind, save_all=True, append_images=frames[1:])
        decoded = decode(file)
        assert decoded.shape == (4, 4, 3)
        assert (decoded == [255, 0, 0]).all(), kind


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_a_truncated_file_is_refused(kind):
    whole = encode(Image.effect_noise((64, 64), 80).convert("RGB"), kind)
    assert decode(whole).shape == (64, 64, 3)
    with pytest.raises(UnreadableImageError):
        decode(whole[: len(whole) // 2])


@pytest.mark.parametrize("content", [b"", b"this is no picture\nbut two lines of text\n"])
def test_a_file_that_is_no_picture_is_refused(tmp_path, content):
    file = tmp_path / "picture.png"
    file.write_bytes(content)
    for picture in (file, content):
        with pytest.raises(UnreadableImageError) as caught:
            decode(picture)
        assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "nothing.png", tmp_path):
        with pytest.raises(UnreadableImageError):
            decode(path)


def test_a_decompression_bomb_is_refused_by_its_header():
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    with pytest.raises(UnreadableImageError, match="3600000000 pixels"):
        decode(bomb)


def test_more_pixels_than_allowed_are_refused(monkeypatch):
    monkeypatch.setattr(pictures, "MOST_PIXELS", 100)
    assert decode(np.zeros((10, 10), np.uint8)).shape == (10, 10, 3)
    with pytest.raises(UnreadableImageError, match="11 x 10 pixels are too many"):
        decode(np.zeros((10, 11), np.uint8))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize(
    ("size", "expected"),
    [((300, 200), (30, 45)), ((200, 300), (45, 30)), ((200, 200), (30, 30)), ((999, 31), (30, 967))],
)
def test_the_shorter_side_is_reduced(kind, size, expected):
    assert decode(encode(Image.new("RGB", size), kind), smallest_side=30).shape == (*expected, 3)


@pytest.mark.parametrize("size", [(30, 30), (29, 500), (1, 20_000), (1, 1)])
def test_a_small_picture_is_not_enlarged(size):
    width, height = size
    assert decode(encode(Image.new("RGB", size)), smallest_side=30).shape == (height, width, 3)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_reduced_picture_looks_like_the_whole_one(kind):
    ramp = np.linspace(0, 255, 320).astype(np.uint8)
    pixels = np.stack([np.tile(ramp, (240, 1)), np.full((240, 320), 90, np.uint8), np.tile(ramp[::-1], (240, 1))], -1)
    decoded = decode(encode(Image.fromarray(pixels), kind), smallest_side=24).astype(int)
    np.testing.assert_allclose(decoded, pixels[5::10, 5::10].astype(int), atol=8)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.full((2, 3), 9, np.uint8), 9),
        (np.full((2, 3, 1), 9, np.uint8), 9),
        (np.full((2, 3, 3), 9, np.uint8), 9),
        (np.full((2, 3), 128 * 257, np.uint16), 128),
        (np.full((2, 3, 1), 128 * 257, np.uint16), 128),
        (np.full((2, 3, 3), 100, np.uint16), 0),
        (np.zeros((2, 3, 4), np.uint8), 255),
        (np.ones((2, 3), bool), 255),
    ],
)
def test_arrays_are_pictures(array, expected):
    decoded = decode(array)
    assert decoded.shape == (2, 3, 3)
    assert decoded.dtype == np.uint8
    assert (decoded == expected).all()


def test_an_array_of_another_shape_is_refused():
    with pytest.raises(UnreadableImageError):
        decode(np.zeros((2, 3, 5), np.uint8))


def test_files_bytes_and_open_images_decode_the_same(tmp_path):
    file = tmp_path / "picture.png"
    Image.fromarray(COLOURS).save(file)
    with Image.open(file) as image:
        for picture in (file, file.read_bytes(), image):
            np.testing.assert_array_equal(decode(picture), COLOURS)


def test_an_open_image_can_be_decoded_again():
    image = Image.fromarray(COLOURS)
    np.testing.assert_array_equal(decode(image, smallest_side=1), decode(image, smallest_side=1))
    assert image.size == (2, 2)


@pytest.mark.parametrize(
    "file",
    [
        plain_tiff(np.arange(12, dtype=np.uint8).reshape(3, 4), photometric=0),
        plain_tiff(np.full((3, 4), 3_000_000_000, np.uint32) + np.arange(4, dtype=np.uint32)),
        plain_tiff(np.arange(-6, 6, dtype=np.int8).reshape(3, 4)),
        bmp([0, 0, 0]),
        b"P5 3 1 65535\n" + struct.pack(">3H", 0, 120, 250),
    ],
    ids=["zero is white", "32 bits without a sign", "8 bits with a sign", "unfilled alpha", "16-bit PGM"],
)
def test_an_open_image_is_read_by_the_header_of_its_file(file):
    for load in (False, True):
        with Image.open(io.BytesIO(file)) as image:
            if load:
                image.load()
            np.testing.assert_array_equal(decode(image), decode(file))


def test_to_rgb_gives_an_rgb_image_of_the_same_size():
    for mode in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "I", "I;16", "F"):
        image = to_rgb(Image.new(mode, (3, 2)))
        assert (image.mode, image.size) == ("RGB", (3, 2)), mode


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        (np.array([[0, 257 * 100, 65535]], np.uint16), [255, 155, 0]),
        (np.array([[0, 0.5, 1]], np.float32), [255, 127, 0]),
        (np.array([[0, 100, 255]], np.uint8), [255, 155, 0]),
    ],
)
def test_where_zero_is_white_the_picture_is_turned(values, shown):
    assert decode(plain_tiff(values, photometric=0))[0, :, 0].tolist() == shown
    assert decode(plain_tiff(values, photometric=1))[0, :, 0].tolist() == [255 - value for value in shown]


SHOWN = [30, 20, 10]
HALF = [142, 137, 132]


@pytest.mark.parametrize(
    ("picture", "shown"),
    [
        # Alpha that is zero throughout was not filled.
        (tga([0, 0], 0), [SHOWN, SHOWN]),
        (tga([0, 0], 8), [SHOWN, SHOWN]),
        (bmp([0, 0]), [SHOWN, SHOWN]),
        (tga([255, 255], 8), [SHOWN, SHOWN]),
        (tga([0, 128], 8), [WHITE, HALF]),
        (bmp([0, 128]), [WHITE, HALF]),
    ],
)
def test_only_alpha_that_is_used_hides_colours(tmp_path, picture, shown):
    (tmp_path / "a.tga").write_bytes(picture)
    for given in (picture, tmp_path / "a.tga"):
        np.testing.assert_allclose(decode(given)[0].astype(int), shown, atol=1)


@pytest.mark.parametrize(("alpha", "shown"), [([0, 0], [SHOWN, SHOWN]), ([0, 128], [WHITE, HALF])])
def test_a_fourth_channel_that_a_tiff_does_not_explain_is_alpha_where_it_is_filled(alpha, shown):
    values = np.array([[[*SHOWN, value] for value in alpha]], np.uint8)
    np.testing.assert_allclose(decode(plain_tiff(values, photometric=2))[0].astype(int), shown, atol=1)


def test_of_a_photograph_with_a_second_one_for_depth_the_first_is_shown():
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    file = encode(frames[0], "MPO", save_all=True, append_images=frames[1:])
    assert Image.open(io.BytesIO(file)).format == "MPO"
    np.testing.assert_allclose(decode(file)[16, 16].astype(int), [255, 0, 0], atol=4)


@pytest.mark.parametrize(
    ("picture", "low", "high"),
    [
        (plain_tiff(np.array([[3, 4080]], np.uint16)), 3, 4080),
        (plain_tiff(np.array([[3, 2**32 - 1]], np.uint32)), 3, 2**32 - 1),
        (plain_tiff(np.array([[-9999, 0.5]], np.float32)), -9999, 0.5),
        (np.array([[3, 1000]], np.uint16), 3, 1000),
    ],
)
def test_the_numbers_of_deep_pictures_are_given_as_they_are(picture, low, high):
    numbers = read_numbers(picture)
    assert (numbers.values.min(), numbers.values.max(), numbers.low) == (low, high, None)
    assert not is_plain(picture)


@pytest.mark.parametrize(
    "picture",
    [
        *(np.zeros((2, 2, 3), np.uint8), Image.new("RGB", (2, 2)), Image.new("P", (2, 2))),
        *(encode(Image.fromarray(COLOURS), kind) for kind in ("PNG", "TIFF", "BMP")),
    ],
)
def test_pictures_of_eight_bits_are_plain_and_have_the_range_of_eight_bits(picture):
    assert is_plain(picture)
    assert read_numbers(picture)[1:3] == (0, 255)


@pytest.mark.parametrize("picture", [b"no picture", Path("/nowhere/a.png")])
def test_what_cannot_be_read_has_no_numbers(picture):
    for read in (is_plain, read_numbers):
        with pytest.raises(UnreadableImageError):
            read(picture)
