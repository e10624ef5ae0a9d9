import numpy as np
import pytest
from picture_files import encode, noise, plain_tiff
from PIL import Image

from hpt_mlflow.data import pixel_range
from hpt_mlflow.data.formats import registry
from hpt_mlflow.data.images import Images
from hpt_mlflow.data.pixel_range import lost_depth, pixels_for, pixels_of
from hpt_mlflow.data.sources import open_dataset
from hpt_mlflow.errors import HptError
from hpt_mlflow.pixels import RGB, PixelFormat

SIZE = (64, 64)


def range_of(dataset_of, pictures):
    pixels = pixels_of(dataset_of(pictures))
    assert len(set(zip(pixels.low, pixels.high, strict=True))) <= 1
    return (pixels.low[0], pixels.high[0]) if pixels.low else None


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [
        # Whole numbers that use their bits have the range of these bits, so that all data of a sensor are alike.
        (noise(SIZE, 0, 4095, np.uint16), 0, 4095),
        (noise(SIZE, 5, 1500, np.uint16), 0, 2047),
        (noise(SIZE, 0, 65535, np.uint16), 0, 65535),
        (noise(SIZE, 0, 1, np.float32), 0, 1),
        (noise(SIZE, -1000, 3000, np.int16), -1000, 3000),
        ((noise(SIZE, 0, 1, np.float32) < 0.5).astype(np.uint16) * 65535, 0, 65535),
    ],
)
def test_the_range_of_numbers(dataset_of, values, low, high):
    found = range_of(dataset_of, [values] * 3)
    assert found == pytest.approx((low, high), abs=0.01 * (high - low))


def test_a_single_number_for_no_data_does_not_set_the_range(dataset_of):
    values = noise(SIZE, 0, 5000, np.float32)
    values[0, 0] = 1e6
    low, high = range_of(dataset_of, [values] * 3)
    # Half of the range between the outermost numbers is left above it.
    assert low == pytest.approx(0, abs=10)
    assert high == pytest.approx(7500, abs=20)


def test_constant_and_empty_pictures_have_a_range(dataset_of):
    assert range_of(dataset_of, [np.full(SIZE, 7.0, np.float32)] * 3) == (7, 8)
    assert range_of(dataset_of, [np.full(SIZE, np.nan, np.float32)] * 3) == (0, 1)


@pytest.mark.parametrize(
    "picture",
    [
        noise(SIZE, 0, 255, np.uint8),
        noise((*SIZE, 3), 0, 255, np.uint8),
        noise((*SIZE, 4), 0, 255, np.uint8),
        encode(Image.fromarray(noise((*SIZE, 3), 0, 255, np.uint8))),
        Image.new("LA", SIZE),
        b"not a picture",
    ],
)
def test_eight_bits_of_grey_and_colour_stay_what_they_are(dataset_of, picture):
    assert pixels_of(dataset_of([picture] * 3)) == RGB


def test_one_deep_picture_makes_all_deep(dataset_of):
    plain, deep = noise(SIZE, 0, 255, np.uint8), noise(SIZE, 0, 4095, np.uint16)
    dataset = dataset_of([plain, plain, deep])
    images = Images(dataset, np.arange(3), 32)
    assert images.pixels.high == (4095,) * 3
    assert {image.dtype.name for image in images.sample} == {"uint16"}


def test_pictures_of_many_bands_have_a_range_for_each(dataset_of):
    values = np.stack([noise(SIZE, 0, most, np.uint16) for most in (255, 1023, 4095, 16383, 65535)], axis=2)
    pixels = pixels_of(dataset_of([values] * 3))
    assert pixels == PixelFormat((1, 2, 3, 4, 5), (0.0,) * 5, (255.0, 1023.0, 4095.0, 16383.0, 65535.0))


def test_bands_of_eight_bits_are_not_scaled(dataset_of):
    assert pixels_of(dataset_of([noise((*SIZE, 6), 0, 255, np.uint8)] * 3)) == PixelFormat((1, 2, 3, 4, 5, 6))


def test_images_with_other_bands_are_counted_as_unreadable(dataset_of):
    pictures = [noise((8, 8, 5), 0, 4095, np.uint16)] * 199 + [noise((8, 8, 3), 0, 4095, np.uint16)]
    images = Images(dataset_of(pictures), np.arange(200), 8)
    assert images.unreadable == {199: "it has no band 5, only 3"}


def test_the_official_test_part_is_not_looked_at(dataset_of):
    pictures = [noise(SIZE, 0, 255, np.uint8)] * 4 + [noise(SIZE, 0, 4095, np.uint16)] * 2
    assert pixels_of(dataset_of(pictures, test=[4, 5])) == RGB


def test_the_range_is_measured_once(dataset_of, monkeypatch):
    pictures = [encode(Image.fromarray(noise(SIZE, 0, 4095, np.uint16)))] * 3
    before = pixels_of(dataset_of(pictures))
    monkeypatch.setattr(pixel_range, "_measure", lambda *_: pytest.fail("measured again"))
    assert pixels_of(dataset_of(pictures)) == before


def test_an_address_chooses_bands(tmp_path):
    for i in range(3):
        Image.fromarray(noise((*SIZE, 3), 0, 255, np.uint8)).save(tmp_path / f"{i}.png")
    whole, chosen = open_dataset(tmp_path), open_dataset(f"{tmp_path}?bands=3,1")
    assert chosen.bands == (3, 1)
    assert chosen.uri.endswith("?bands=3,1")
    assert open_dataset(chosen.uri).bands == (3, 1)
    assert chosen.digest != whole.digest
    image = Images(chosen, np.arange(3), 64)[0]
    np.testing.assert_array_equal(image, Images(whole, np.arange(3), 64)[0][:, :, [2, 0]])


@pytest.mark.parametrize("bands", ["", "0,1", "a", "1,1", "-1"])
def test_bands_that_are_no_bands_are_refused(tmp_path, bands):
    with pytest.raises(HptError, match="count bands from 1"):
        open_dataset(f"{tmp_path}?bands={bands}")


def test_bands_that_are_not_there_are_refused(dataset_of, tmp_path):
    Image.fromarray(noise((*SIZE, 3), 0, 255, np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(HptError, match=r"bands=4,3,2: most images of .* have 3 bands"):
        pixels_of(open_dataset(f"{tmp_path}?bands=4,3,2"))


def test_a_model_keeps_its_own_range_and_refuses_other_channels(dataset_of):
    dataset = dataset_of([noise(SIZE, 0, 4095, np.uint16)] * 3)
    learned = PixelFormat(low=(0.0,) * 3, high=(16383.0,) * 3)
    assert pixels_for(dataset, learned) == learned
    assert pixels_for(dataset, RGB).high == (4095,) * 3
    with pytest.raises(HptError, match="have 5 channels, and the model takes 3"):
        pixels_for(dataset_of([noise((*SIZE, 5), 0, 4095, np.uint16)] * 3), RGB)


def test_colours_that_lose_half_of_their_bits_are_told_with_what_to_install(dataset_of, monkeypatch):
    deep = plain_tiff(noise((*SIZE, 3), 0, 65535, np.uint16), photometric=2)
    dataset = dataset_of([noise(SIZE, 0, 255, np.uint8), b"no picture", deep])
    assert lost_depth(dataset, np.arange(3)) == ""
    monkeypatch.setattr(registry, "missing", lambda name: 'pip install "hpt_mlflow[tiff]"')
    assert lost_depth(dataset, np.arange(3)).endswith(
        '8 of 16 bits per colour are read; for all of them, pip install "hpt_mlflow[tiff]"'
    )
    assert lost_depth(dataset, np.arange(2)) == ""
