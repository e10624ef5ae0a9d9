import numpy as np
import pytest
import tifffile

from hpt_mlflow.data.cache import cache_folder
from hpt_mlflow.data.errors import UnreadableImageError
from hpt_mlflow.data.images import Images
from hpt_mlflow.data.numbers import read_numbers
from hpt_mlflow.data.pictures import Stack
from hpt_mlflow.data.sources import open_dataset
from hpt_mlflow.data.stacks import find_stacks
from hpt_mlflow.errors import HptError
from hpt_mlflow.pixels import RGB, PixelFormat

PATTERN = r"(.+)_(B\w+)\.tif"


def test_files_of_one_image_are_put_together_in_the_order_of_their_bands():
    bands = ["B10", "B9", "B8A", "B08", "B11"]
    names = [f"{folder}/tile_{band}.tif" for band in bands for folder in ("b", "a")]
    found, stacks, others = find_stacks([*names, "readme.txt"], PATTERN)
    assert found == ("B08", "B8A", "B9", "B10", "B11")
    assert [image.name for image in stacks] == ["a/tile", "b/tile"]
    assert stacks[0].files == tuple(f"a/tile_{band}.tif" for band in found)
    assert others == ["readme.txt"]


def test_images_that_lack_a_band_are_left_over():
    _, stacks, others = find_stacks(["a_B1.tif", "a_B2.tif", "b_B2.tif"], PATTERN)
    assert [image.name for image in stacks] == ["a"]
    assert others == ["b_B2.tif"]


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        (r"(.+)_(B\d", "not a regular expression"),
        (r".+_(B\d+)\.tif", "has 1 groups"),
        (r"(.+)-(B\d+)\.tif", "fits no file"),
        (r"(.+)_(B)\d+\.tif", "both the band 'B'"),
    ],
)
def test_patterns_that_do_not_fit_are_refused(pattern, words):
    with pytest.raises(HptError, match=words):
        find_stacks(["a_B1.tif", "a_B2.tif"], pattern)


@pytest.fixture
def scenes(tmp_path):
    """Eight images of four bands in two classes, a file for each band."""
    values = np.random.default_rng(0).integers(0, 4096, (8, 6, 5, 4), dtype=np.uint16)
    for i, image in enumerate(values):
        folder = tmp_path / "scenes" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        for band in range(4):
            tifffile.imwrite(folder / f"tile{i}_B{band + 8:02}.tif", image[..., band])
    return tmp_path / "scenes", values


def test_an_address_puts_the_files_of_an_image_together(scenes):
    folder, values = scenes
    dataset = open_dataset(f"{folder}?stack={PATTERN}")
    assert list(dataset.names) == [f"{'ab'[i % 2]}/tile{i}" for i in (0, 2, 4, 6, 1, 3, 5, 7)]
    assert dataset.labels.tolist() == [0] * 4 + [1] * 4
    images = Images(dataset, np.arange(8), 64, cache_gib=1)
    # Decoded once, and mapped from then on.
    assert len(list((cache_folder() / "decoded").glob("*.images"))) == 1
    assert images.pixels == PixelFormat((1, 2, 3, 4), (0.0,) * 4, (4095.0,) * 4)
    np.testing.assert_array_equal(images[1], np.round(values[2] * (65535 / 4095)))
    again = open_dataset(dataset.uri)
    assert (again.digest, again.uri) == (dataset.digest, dataset.uri)
    chosen = open_dataset(f"{folder}?stack={PATTERN}&bands=3,1")
    np.testing.assert_array_equal(read_numbers(chosen.pictures[1]).values, values[2])
    assert chosen.bands == (3, 1)


def test_what_is_no_band_and_what_lacks_one_is_left_out(scenes):
    folder, _ = scenes
    (folder / "a" / "tile0_B09.tif").unlink()
    tifffile.imwrite(folder / "a" / "mask.tif", np.zeros((4, 4), np.uint8))
    dataset = open_dataset(f"{folder}?stack={PATTERN}")
    assert len(dataset) == 7
    (entry,) = dataset.left_out
    assert (entry.count, "a/mask.tif" in entry.examples) == (4, True)


def test_files_of_one_image_must_agree(tmp_path):
    for name in ("a/tile_B1.tif", "b/tile_B2.tif"):
        (tmp_path / name).parent.mkdir()
        tifffile.imwrite(tmp_path / name, np.zeros((4, 4), np.uint8))
    with pytest.raises(HptError, match="the files of tile differ in their label"):
        open_dataset(rf"{tmp_path}?stack=./(tile)_(B\d)\.tif")


def test_images_that_are_not_files_have_no_stacks():
    with pytest.raises(HptError, match="are not files; use it with a folder"):
        open_dataset("builtin:digits?stack=(.)(.)")


def test_bands_of_other_sizes_and_damaged_ones_make_an_image_unreadable(tmp_path):
    values = np.random.default_rng(0).integers(0, 65536, (6, 5, 3), dtype=np.uint16)
    files = tuple(tmp_path / f"a_B{i}.tif" for i in range(3))
    for i, file in enumerate(files):
        tifffile.imwrite(file, values[..., i])
    np.testing.assert_array_equal(read_numbers(Stack(files)).values, values)
    tifffile.imwrite(files[1], values[:3, :, 1])
    with pytest.raises(UnreadableImageError, match=r"a_B0.tif has 5 x 6 pixels, a_B1.tif 5 x 3; resample"):
        read_numbers(Stack(files))
    files[1].write_bytes(b"II*\0")
    with pytest.raises(UnreadableImageError, match="a_B1.tif: "):
        read_numbers(Stack(files))


def test_three_bands_of_eight_bits_are_colours(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    for i in range(3):
        tifffile.imwrite(tmp_path / f"a_B{i}.tif", values[..., i])
    dataset = open_dataset(f"{tmp_path}?stack={PATTERN}")
    images = Images(dataset, np.arange(1), 64)
    assert images.pixels == RGB
    np.testing.assert_array_equal(images[0], values)
