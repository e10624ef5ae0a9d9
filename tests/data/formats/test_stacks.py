import numpy as np
import pytest
import tifffile

from hpt_mlflow.data.errors import UnreadableImageError
from hpt_mlflow.data.formats.pixels import Pixels
from hpt_mlflow.data.formats.stacks import find_stacks, read_stack, stack
from hpt_mlflow.errors import HptError

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


def test_bands_become_channels(tmp_path):
    values = np.random.default_rng(0).integers(0, 65536, (6, 5, 3), dtype=np.uint16)
    files = [tmp_path / f"a_B{i}.tif" for i in range(3)]
    for i, file in enumerate(files):
        tifffile.imwrite(file, values[..., i])
    read = read_stack(files)
    np.testing.assert_array_equal(read.values, values)
    tifffile.imwrite(files[1], values[:3, :, 1])
    with pytest.raises(UnreadableImageError, match=r"a_B0.tif has 5 x 6 pixels, a_B1.tif 5 x 3; resample"):
        read_stack(files)
    files[1].write_bytes(b"II*\0")
    with pytest.raises(UnreadableImageError, match="a_B1.tif: "):
        read_stack(files)


def test_only_what_all_bands_declare_is_declared():
    grey = np.zeros((3, 4), np.uint16)
    read = stack([Pixels(grey, 0, 4095, 7), Pixels(grey.astype("f4"), 0, 9, 7)], ["a", "b"])
    assert (read.values.dtype, read.low, read.high, read.nodata) == (np.float32, 0, None, 7)
    with pytest.raises(UnreadableImageError, match="b has 3 channels"):
        stack([Pixels(grey), Pixels(np.zeros((3, 4, 3)))], ["a", "b"])
