import io

import numpy as np
import pytest
from picture_files import encode, noise, plain_tiff
from PIL import Image

from hpt_mlflow.data.decode import decode
from hpt_mlflow.data.errors import UnreadableImageError
from hpt_mlflow.data.formats.numbers import Numbers
from hpt_mlflow.data.numbers import is_plain, read_numbers, to_pixels
from hpt_mlflow.pixels import RGB, PixelFormat, pixel_format_of

GREY_12 = PixelFormat(low=(0.0,) * 3, high=(4095.0,) * 3)
FOUR = PixelFormat(bands=(1, 2, 3, 4), low=(0.0,) * 4, high=(1000.0,) * 4)


def levels_of(values, pixels, **options):
    return len(np.unique(decode(values, pixels=pixels, **options)[:, :, 0]))


@pytest.mark.parametrize(
    "form",
    [
        lambda values: values,
        lambda values: encode(Image.fromarray(values)),
        plain_tiff,
        lambda values: Image.open(io.BytesIO(plain_tiff(values))),
    ],
)
def test_all_levels_of_twelve_bits_stay_apart(form):
    values = np.random.default_rng(0).permutation(4096).reshape(64, 64).astype(np.uint16)
    pixels = decode(form(values), pixels=GREY_12)
    assert pixels.shape == (64, 64, 3)
    assert pixels.dtype == np.uint16
    assert len(np.unique(pixels)) == 4096
    np.testing.assert_array_equal(pixels[:, :, 0], np.round(values * (65535 / 4095)))
    # As 8-bit RGB, 17 levels are left.
    assert levels_of(values, RGB) == 17


def test_a_deep_picture_is_reduced_as_floats_are():
    values = noise((300, 200), 0, 4095, np.uint16)
    reduced = decode(values, 50, GREY_12)
    assert reduced.shape == (75, 50, 3)
    narrow = Image.fromarray((values * (65535 / 4095)).astype(np.float32)).resize((50, 300), Image.Resampling.BILINEAR)
    expected = np.asarray(narrow.resize((50, 75), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(reduced[:, :, 0], expected, atol=1.5)


def test_bands_are_chosen_in_the_order_named():
    values = np.arange(5 * 4 * 6, dtype=np.uint16).reshape(4, 5, 6)
    chosen = PixelFormat(bands=(4, 3, 2), low=(0.0,) * 3, high=(65535.0,) * 3)
    np.testing.assert_array_equal(decode(values, pixels=chosen), values[:, :, [3, 2, 1]])


def test_bands_of_eight_bits_stay_as_they_are():
    values = noise((40, 30, 5), 0, 255, np.uint8)
    pixels = decode(values, pixels=PixelFormat(bands=(1, 2, 3, 4, 5)))
    np.testing.assert_array_equal(pixels, values)
    small = decode(values, 10, PixelFormat(bands=(1, 2, 3, 4, 5)))
    band = Image.fromarray(values[:, :, 4]).resize((10, 40), 2).resize((10, 13), 2)
    np.testing.assert_array_equal(small[:, :, 4], np.asarray(band))


def test_a_picture_of_eight_bits_among_deep_ones_keeps_its_own_range():
    picture = encode(Image.fromarray(np.array([[[0, 128, 255]]], np.uint8)))
    assert decode(picture, pixels=GREY_12).tolist() == [[[0, 128 * 257, 65535]]]


def test_numbers_outside_of_the_range_are_black_and_white():
    values = np.array([[-5.0, 0, 2047.5, 4095, 9000]], np.float32)
    assert decode(values, pixels=GREY_12)[0, :, 0].tolist() == [0, 0, 32768, 65535, 65535]


def test_what_was_not_measured_is_black_but_not_a_whole_picture():
    values = np.array([[np.nan, np.inf, 4095]], np.float32)
    assert decode(values, pixels=GREY_12)[0, :, 0].tolist() == [0, 0, 65535]
    with pytest.raises(UnreadableImageError, match="no finite number"):
        decode(np.full((2, 2), np.nan, np.float32), pixels=GREY_12)


@pytest.mark.parametrize(
    ("values", "pixels", "reason"),
    [
        (np.zeros((2, 2, 3), np.uint16), FOUR, "it has no band 4, only 3"),
        (np.zeros((2, 2, 5), np.uint16), GREY_12, "it has 5 bands, where most images are grey or RGB"),
        (np.zeros((2, 2, 4), np.uint16), PixelFormat(bands=(1, 2, 3, 4)), "numbers of type uint16, where most images"),
        (np.zeros((2, 2, 2, 2), np.uint16), FOUR, "an array of uint16 and shape"),
        (np.zeros((0, 2), np.uint16), GREY_12, "an array of uint16 and shape"),
        (np.zeros((2, 2), np.complex64), GREY_12, "an array of complex64"),
    ],
)
def test_pictures_that_do_not_fit_are_unreadable(values, pixels, reason):
    with pytest.raises(UnreadableImageError, match=reason):
        decode(values, pixels=pixels)


def test_the_range_that_a_file_declares_comes_before_that_of_the_dataset():
    numbers = Numbers(np.array([[[100], [150], [200]]], np.int16), 100, 200)
    assert to_pixels(numbers, GREY_12)[0, :, 0].tolist() == [0, 32768, 65535]


def test_white_on_black_is_turned():
    values = np.array([[0, 65535]], np.uint16)
    assert read_numbers(plain_tiff(values, photometric=0)).values[0, :, 0].tolist() == [65535, 0]


@pytest.mark.parametrize("values", [np.zeros((2, 2, 5), np.uint8), np.zeros((2, 2), np.uint16)])
def test_bands_and_depth_are_not_plain(values):
    assert not is_plain(values)


@pytest.mark.parametrize("pixels", [RGB, GREY_12, FOUR, PixelFormat(bands=(4, 3, 2))])
def test_a_format_survives_its_file(pixels):
    assert pixel_format_of(pixels.as_values()) == pixels


@pytest.mark.parametrize(
    "values",
    [
        {"bands": [1, 2], "low": [0.0], "high": [1.0]},
        {"bands": [0], "low": [], "high": []},
        {"bands": [], "low": [0.0, 0.0, 0.0], "high": []},
    ],
)
def test_what_is_no_format_is_refused(values):
    with pytest.raises(ValueError, match="not a format of pixels"):
        pixel_format_of(values)


def test_a_format_says_what_it_is():
    assert str(RGB) == "8-bit RGB"
    assert str(GREY_12) == "grey or RGB, 16 bits from 0 to 4,095"
    assert str(PixelFormat((2, 1), (0.0, 5.0), (10.0, 20.0))) == "bands 2, 1, 16 bits from 0 to 10; 5 to 20"
    assert str(PixelFormat((1, 2, 3, 4))) == "bands 1, 2, 3, 4, 8 bits"
