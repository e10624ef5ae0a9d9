import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from picture_files import bmp, chunk, deep_png, plain_tiff, tga
from PIL import Image

from hpt_mlflow.data import decode as decode_module
from hpt_mlflow.data.decode import UnreadableImageError, decode, deep_values, to_rgb

WHITE = [255, 255, 255]
COLOURS = np.array([[[255, 0, 0], [0, 160, 40]], [[20, 30, 200], [128, 128, 128]]], dtype=np.uint8)


def encode(image, kind="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


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


def test_rgb_is_kept_as_it_is():
    decoded = decode(encode(Image.fromarray(COLOURS)))
    np.testing.assert_array_equal(decoded, COLOURS)
    assert decoded.dtype == np.uint8


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


def test_one_bit_is_black_and_white():
    image = Image.fromarray(np.array([[0, 255]], dtype=np.uint8)).convert("1")
    assert decode(encode(image)).tolist() == [[[0, 0, 0], WHITE]]


def test_grey_is_the_same_in_all_channels():
    image = Image.fromarray(np.array([[0, 77, 255]], dtype=np.uint8))
    assert decode(encode(image)).tolist() == [[[0, 0, 0], [77, 77, 77], WHITE]]


def test_a_palette_is_looked_up():
    image = Image.frombytes("P", (3, 1), bytes([0, 1, 2]))
    image.putpalette([9, 8, 7, 200, 0, 0, 0, 0, 250])
    assert decode(encode(image)).tolist() == [[[9, 8, 7], [200, 0, 0], [0, 0, 250]]]


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_the_transparent_colour_of_a_palette_is_white(kind):
    image = Image.frombytes("P", (3, 1), bytes([0, 1, 2]))
    image.putpalette([9, 8, 7, 200, 0, 0, 0, 0, 250])
    decoded = decode(encode(image, kind, transparency=1))
    assert decoded.tolist() == [[[9, 8, 7], WHITE, [0, 0, 250]]]


def test_a_palette_with_alpha_for_each_colour_is_blended_with_white():
    image = Image.frombytes("P", (2, 1), bytes([0, 1]))
    image.putpalette([0, 0, 0, 200, 0, 0])
    decoded = decode(encode(image, transparency=bytes([128, 255])))
    np.testing.assert_allclose(decoded[0].astype(int), [[127, 127, 127], [200, 0, 0]], atol=1)


def test_the_transparent_colour_of_rgb_is_white():
    decoded = decode(encode(Image.fromarray(COLOURS), transparency=(255, 0, 0)))
    assert decoded[0, 0].tolist() == WHITE
    np.testing.assert_array_equal(decoded[1], COLOURS[1])


def test_the_transparent_value_of_grey_is_white():
    image = Image.fromarray(np.array([[5, 9]], dtype=np.uint8))
    assert decode(encode(image, transparency=9)).tolist() == [[[5, 5, 5], WHITE]]


def test_alpha_is_blended_with_white():
    image = Image.fromarray(np.array([[[255, 0, 0, 0], [255, 0, 0, 128], [255, 0, 0, 255]]], dtype=np.uint8))
    np.testing.assert_allclose(decode(encode(image))[0].astype(int), [WHITE, [255, 127, 127], [255, 0, 0]], atol=1)


def test_grey_with_alpha_is_blended_with_white():
    image = Image.frombytes("LA", (3, 1), bytes([0, 0, 0, 128, 0, 255]))
    np.testing.assert_allclose(decode(encode(image))[0].astype(int), [WHITE, [127, 127, 127], [0, 0, 0]], atol=1)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_to_eight(kind):
    decoded = decode(encode(deep_grey([[0, 257, 128 * 257, 65535]]), kind))
    assert decoded[0, :, 0].tolist() == [0, 1, 128, 255]
    assert (decoded == decoded[:, :, :1]).all()


def test_all_rows_of_a_high_picture_of_sixteen_bits_are_scaled():
    values = np.arange(200).reshape(200, 1)
    np.testing.assert_array_equal(decode(encode(deep_grey(values * 257)))[:, :, 0], values)


def test_a_dark_image_of_sixteen_bits_stays_dark():
    assert decode(encode(deep_grey([[0, 100, 200, 255]]))).max() == 1


def test_a_dark_image_of_sixteen_bits_stays_dark_in_the_other_byte_order():
    values = np.array([[0, 100], [200, 255]])
    np.testing.assert_array_equal(decode(big_endian_tiff(values)), decode(encode(deep_grey(values))))


@pytest.mark.parametrize(("most", "shown"), [(65535, [0, 0, 1]), (1000, [0, 31, 64])])
def test_a_pgm_of_sixteen_bits_is_scaled_by_what_its_header_calls_white(most, shown):
    file = b"P5 3 1 %d\n" % most + struct.pack(">3H", 0, 120, 250)
    assert decode(file)[0, :, 0].tolist() == shown


def test_sixteen_bits_in_the_other_byte_order_are_scaled_to_eight():
    assert decode(big_endian_tiff(np.array([[0, 257], [128 * 257, 65535]])))[:, :, 0].tolist() == [[0, 1], [128, 255]]


def test_sixteen_bits_with_a_transparent_value_are_scaled_to_eight():
    decoded = decode(encode(deep_grey([[0, 64 * 257, 128 * 257, 65535]]), transparency=5))
    assert decoded[0, :, 0].tolist() == [0, 64, 128, 255]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 128, 255], [0, 128, 255]),
        ([0, 128 * 257, 65535], [0, 128, 255]),
        ([0, 50_000, 100_000], [0, 128, 255]),
        ([-100, 0, 155], [0, 100, 255]),
        ([0, 0, 0], [0, 0, 0]),
        ([7, 7, 7], [7, 7, 7]),
        ([-7, -7, -7], [0, 0, 0]),
    ],
)
def test_whole_numbers_of_thirty_two_bits_are_scaled_by_their_range(values, expected):
    image = Image.fromarray(np.array([values], dtype=np.int32))
    assert image.mode == "I"
    assert decode(encode(image, "TIFF"))[0, :, 0].tolist() == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 100.0, 255.0], [0, 100, 255]),
        ([0.0, 128 * 257.0, 65535.0], [0, 128, 255]),
        ([-1.0, 0.0, 1.0], [0, 128, 255]),
    ],
)
def test_fractions_are_scaled_by_their_range(values, expected):
    image = Image.fromarray(np.array([values], dtype=np.float32))
    assert image.mode == "F"
    assert decode(encode(image, "TIFF"))[0, :, 0].tolist() == expected


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
    monkeypatch.setattr(decode_module, "MOST_PIXELS", 100)
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


def test_thirty_two_bits_without_a_sign_do_not_wrap():
    top = 2**32 - 1
    assert decode(plain_tiff(np.array([[0, top // 255 * 100, top]], np.uint32)))[0, :, 0].tolist() == [0, 100, 255]


def test_thirty_two_bits_with_a_sign_are_scaled_by_their_range():
    assert decode(plain_tiff(np.array([[-1000, -200, 1000]], np.int32)))[0, :, 0].tolist() == [0, 102, 255]


def test_sixteen_bits_with_a_sign_are_scaled_by_their_range():
    assert decode(plain_tiff(np.array([[-1000, -200, 1000]], np.int16)))[0, :, 0].tolist() == [0, 102, 255]


def test_eight_bits_with_a_sign_do_not_wrap():
    assert decode(plain_tiff(np.array([[-100, -20, 100]], np.int8)))[0, :, 0].tolist() == [0, 102, 255]


@pytest.mark.parametrize(("dtype", "largest"), [(np.float16, 60_000), (np.float32, 3e38), (np.float64, 1e300)])
def test_numbers_far_apart_are_scaled_by_their_range(dtype, largest):
    assert decode(np.array([[-largest, 0, largest]], dtype))[0, :, 0].tolist() == [0, 128, 255]


def test_numbers_close_together_are_scaled_by_their_range():
    assert decode(np.array([[-1e-5, 0, 1e-5]], np.float16))[0, :, 0].tolist() == [0, 128, 255]
    assert decode(np.array([[-1e-38, 0, 1e-38]], np.float32))[0, :, 0].tolist() == [0, 128, 255]


SHOWN = [30, 20, 10]
HALF = [142, 137, 132]


@pytest.mark.parametrize(
    ("picture", "shown"),
    [
        # Where the header tells of no alpha, whatever is in its place is not one.
        (tga([0, 0], 0), [SHOWN, SHOWN]),
        (tga([0, 128], 0), [SHOWN, SHOWN]),
        # Where it tells of alpha that is zero throughout, it was not filled.
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


def test_a_tiff_that_says_that_it_is_transparent_throughout_is_white():
    assert decode(encode(Image.new("RGBA", (2, 1), (30, 20, 10, 0)), "TIFF")).min() == 255


def test_a_palette_whose_alpha_is_not_filled_shows_its_colours_in_a_tga():
    header = struct.pack("<BBBHHBHHHHBB", 0, 1, 1, 0, 1, 32, 0, 0, 2, 1, 8, 0x20)
    assert decode(header + bytes([10, 20, 30, 0]) + bytes([0, 0])).tolist() == [[[30, 20, 10]] * 2]


def test_the_transparent_colours_of_a_palette_are_white_in_a_tga_too():
    header = struct.pack("<BBBHHBHHHHBB", 0, 1, 1, 0, 2, 32, 0, 0, 2, 1, 8, 0x20)
    file = header + bytes([10, 20, 30, 0, 40, 50, 60, 255]) + bytes([0, 1])
    assert decode(file).tolist() == [[[255, 255, 255], [60, 50, 40]]]


def test_of_a_photograph_with_a_second_one_for_depth_the_first_is_shown():
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    file = encode(frames[0], "MPO", save_all=True, append_images=frames[1:])
    assert Image.open(io.BytesIO(file)).format == "MPO"
    np.testing.assert_allclose(decode(file)[16, 16].astype(int), [255, 0, 0], atol=4)


@pytest.mark.parametrize("file", [deep_png, lambda values: plain_tiff(values, photometric=2)])
def test_colours_of_sixteen_bits_are_scaled_to_eight(file):
    assert decode(file(np.array([[[0, 25_700, 65_535]]], np.uint16))).tolist() == [[[0, 100, 255]]]


def test_a_png_that_is_transparent_throughout_is_white():
    assert decode(encode(Image.new("RGBA", (2, 1), (30, 20, 10, 0)))).min() == 255


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
    values, are_whole = deep_values(picture)
    assert (values.min(), values.max()) == (low, high)
    assert are_whole


@pytest.mark.parametrize("file", [deep_png, lambda values: plain_tiff(values, photometric=2)])
def test_of_colours_of_sixteen_bits_the_upper_half_is_given(file):
    values, are_whole = deep_values(file(np.array([[[0, 257 * 3 + 100, 65_535]]], np.uint16)))
    assert values.tolist() == [[[0, 257 * 3, 65_535]]]
    assert not are_whole


@pytest.mark.parametrize(
    "picture",
    [
        *(np.zeros((2, 2, 3), np.uint8), Image.new("RGB", (2, 2)), Image.new("P", (2, 2))),
        *(encode(Image.fromarray(COLOURS), kind) for kind in ("PNG", "TIFF", "BMP")),
    ],
)
def test_pictures_of_eight_bits_are_not_deep(picture):
    assert deep_values(picture) is None


@pytest.mark.parametrize("picture", [b"no picture", Path("/nowhere/a.png")])
def test_what_cannot_be_read_has_no_depth(picture):
    with pytest.raises(UnreadableImageError):
        deep_values(picture)
