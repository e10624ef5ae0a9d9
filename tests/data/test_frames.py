import os
import shutil
import zipfile

import nibabel
import numpy as np
import pytest
import tifffile
from picture_files import deep_png
from PIL import Image
from pydicom.data import get_testdata_file

from hpt_mlflow.data import frames as frames_module
from hpt_mlflow.data.contents import Contents
from hpt_mlflow.data.decode import decode
from hpt_mlflow.data.errors import UnreadableImageError
from hpt_mlflow.data.numbers import read_numbers
from hpt_mlflow.data.pictures import Frame
from hpt_mlflow.data.pixel_range import pixels_of
from hpt_mlflow.data.sources import open_dataset
from hpt_mlflow.errors import HptError


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """A cache of its own for each test."""
    monkeypatch.setenv("HPT_CACHE", str(tmp_path_factory.mktemp("cache")))


def sample(name, file):
    file.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(get_testdata_file(name, download=False), file)
    return file


def pages(file, *values):
    """A TIFF of plain pages of 8 bits."""
    file.parent.mkdir(parents=True, exist_ok=True)
    images = [Image.new("RGB", (6, 5), (value, value, value)) for value in values]
    images[0].save(file, save_all=True, append_images=images[1:])
    return file


def values_of(dataset):
    return [int(decode(picture)[0, 0, 0]) for picture in dataset.pictures]


def test_each_image_of_a_file_is_one_of_the_dataset(tmp_path, write_image):
    write_image(tmp_path / "a" / "0.png")
    pages(tmp_path / "a" / "1.tif", 1, 2, 3)
    pages(tmp_path / "b" / "2.tif", 4)
    pages(tmp_path / "b" / "3.tiff", 5, 6)
    dataset = open_dataset(str(tmp_path))
    assert dataset.names == ["a/0.png", "a/1.tif#0", "a/1.tif#1", "a/1.tif#2", "b/2.tif", "b/3.tiff#0", "b/3.tiff#1"]
    assert values_of(dataset)[1:] == [1, 2, 3, 4, 5, 6]
    assert dataset.pictures[2] == Frame(tmp_path / "a" / "1.tif", 1)
    assert dataset.pictures[4] == tmp_path / "b" / "2.tif"
    assert [dataset.classes[label] for label in dataset.labels] == ["a"] * 4 + ["b"] * 3
    # Pages are alike, so that none may be tested on while another is trained on.
    assert dataset.groups.tolist() == [0, 1, 1, 1, 2, 3, 3]
    contents = dataset.contents.of(np.arange(7))
    assert len(set(contents.tolist())) == 7
    np.testing.assert_array_equal(Contents(dataset.pictures).of(np.arange(7)), contents)
    assert open_dataset(dataset.uri).digest == dataset.digest


def test_parts_stay_parts(tmp_path):
    for part in ("train", "test"):
        for name in "ab":
            pages(tmp_path / part / name / "1.tif", 1, 2)
    dataset = open_dataset(str(tmp_path))
    assert [dataset.names[i] for i in dataset.test] == [f"test/{name}/1.tif#{k}" for name in "ab" for k in (0, 1)]


def test_a_dataset_of_single_images_is_as_it_was(tmp_path, monkeypatch):
    pages(tmp_path / "1.tif", 1)
    monkeypatch.setattr(frames_module, "_expanded", None)
    dataset = open_dataset(str(tmp_path))
    assert (type(dataset.pictures).__name__, dataset.groups) == ("Files", None)


def test_headers_are_read_once(tmp_path, monkeypatch):
    file = pages(tmp_path / "1.tif", 1, 2)
    os.utime(file, (1, 1))
    monkeypatch.setattr("hpt_mlflow.data.contents.RACY_NS", -(10**15))
    counted = []
    real = frames_module._count
    monkeypatch.setattr(frames_module, "_count", lambda files, i: counted.append(i) or real(files, i))
    assert [len(open_dataset(str(tmp_path))) for _ in range(3)] == [2, 2, 2]
    assert counted == [0]
    pages(file, 1, 2, 3)
    assert len(open_dataset(str(tmp_path))) == 3


def test_studies_in_folders_without_suffixes_are_found(tmp_path):
    folder = tmp_path / "patient" / "1.2.840" / "1.2.840.7"
    sample("CT_small.dcm", folder / "IM0001")
    sample("MR_small.dcm", folder / "1.2.840.113619.2.55.17")
    sample("SC_rgb_rle_2frame.dcm", folder / "1.2.840.113619.2.55.18")
    sample("test-SR.dcm", folder / "SR0001")
    sample("DICOMDIR-empty.dcm", tmp_path / "DICOMDIR")
    (folder / "VERSION").write_text("1")
    dataset = open_dataset(str(tmp_path), every_image=True)
    start = "patient/1.2.840/1.2.840.7/1.2.840.113619.2.55"
    assert set(dataset.names) == {
        *(f"{start}.17", f"{start}.18#0", f"{start}.18#1"),
        "patient/1.2.840/1.2.840.7/IM0001",
    }
    assert [str(entry) for entry in dataset.left_out] == ["1 file without an image (patient/1.2.840/1.2.840.7/SR0001)"]
    for picture in dataset.pictures:
        assert decode(picture).std() > 0


def test_grey_levels_of_a_window_are_kept(tmp_path):
    file = sample("693_J2KI.dcm", tmp_path / "a.dcm")
    image = decode(file)
    assert image.shape == (512, 512, 3)
    assert len(np.unique(image)) > 90


def test_slices_of_volumes_are_images(tmp_path):
    values = np.random.default_rng(0).integers(0, 1000, (7, 5, 4)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "brain.nii.gz")
    dataset = open_dataset(str(tmp_path))
    assert dataset.names == [f"brain.nii.gz#{k}" for k in range(4)]
    assert decode(dataset.pictures[3]).shape == (5, 7, 3)


def test_arrays_are_images_where_nothing_else_is(tmp_path, write_image):
    np.save(tmp_path / "1.npy", np.arange(30, dtype=np.uint8).reshape(5, 6))
    dataset = open_dataset(str(tmp_path))
    assert dataset.names == ["1.npy"]
    assert decode(dataset.pictures[0])[4, 5].tolist() == [29, 29, 29]
    write_image(tmp_path / "1.png")
    dataset = open_dataset(str(tmp_path))
    assert dataset.names == ["1.png"]
    assert "1 file .npy (1.npy): beside images of other formats, arrays are something else" in map(
        str, dataset.left_out
    )


def test_lists_and_tables_name_files_or_single_images(tmp_path, write_image):
    pages(tmp_path / "1.tif", 1, 2, 3)
    pages(tmp_path / "2.tif", 4)
    write_image(tmp_path / "x#7.png", colour=(9, 9, 9))
    (tmp_path / "all.txt").write_text("1.tif#2\tb\n1.tif#0\ta\n2.tif\ta\nx#7.png\tb\n")
    dataset = open_dataset(f"list:{tmp_path}/all.txt")
    assert dataset.names == ["1.tif#2", "1.tif#0", "2.tif", "x#7.png"]
    assert values_of(dataset) == [3, 1, 4, 9]
    assert [dataset.classes[label] for label in dataset.labels] == ["b", "a", "a", "b"]
    assert dataset.groups.tolist() == [0, 0, 2, 3]
    (tmp_path / "all.csv").write_text("path,label,patient\n1.tif#1,a,p\n2.tif,b,q\n")
    dataset = open_dataset(f"csv:{tmp_path}/all.csv")
    assert (dataset.names, values_of(dataset)) == (["1.tif#1", "2.tif"], [2, 4])
    (tmp_path / "all.csv").write_text("path,label,patient\n1.tif,a,p\n2.tif,b,q\n")
    dataset = open_dataset(f"csv:{tmp_path}/all.csv")
    assert (dataset.names, dataset.groups.tolist()) == (["1.tif#0", "1.tif#1", "1.tif#2", "2.tif"], [0, 0, 0, 1])
    (tmp_path / "all.txt").write_text("1.tif#3\n2.tif\n")
    with pytest.raises(UnreadableImageError, match="no image 3, only 3"):
        decode(open_dataset(f"list:{tmp_path}/all.txt").pictures[0])


def test_a_file_of_several_images_in_an_archive_is_not_cut_down_to_one(tmp_path):
    file = sample("SC_rgb_rle_2frame.dcm", tmp_path / "a.dcm")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(file, "a.dcm")
        archive.write(sample("CT_small.dcm", tmp_path / "b"), "b")
    dataset = open_dataset(f"zip:{tmp_path}/a.zip")
    assert dataset.names == ["a.dcm", "b"]
    with pytest.raises(UnreadableImageError, match="it holds 2 images; put it into a folder"):
        decode(dataset.pictures[0])
    assert decode(dataset.pictures[1]).shape == (128, 128, 3)


def test_all_bands_and_levels_reach_the_network(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(3):
        bands = rng.integers(0, 10_000, (64, 64, 13)).astype(np.uint16)
        bands[..., 12] = np.arange(4096, dtype=np.uint16).reshape(64, 64)
        tags = [(42113, "s", 0, "9999", True)]
        tifffile.imwrite(tmp_path / f"{i}.tif", bands, photometric="minisblack", planarconfig="contig", extratags=tags)
    dataset = open_dataset(str(tmp_path))
    pixels = pixels_of(dataset)
    assert (pixels.channels, pixels.is_rgb) == (13, False)
    image = decode(dataset.pictures[0], pixels=pixels)
    assert (image.shape, image.dtype) == ((64, 64, 13), np.uint16)
    assert len(np.unique(image[..., 12])) == 4096
    with pytest.raises(UnreadableImageError, match="it has 13 bands, where most images are grey or RGB"):
        decode(tmp_path / "1.tif")


def test_a_window_of_dicom_is_black_to_white(tmp_path):
    sample("693_J2KI.dcm", tmp_path / "a.dcm")
    dataset = open_dataset(str(tmp_path))
    image = decode(dataset.pictures[0], pixels=pixels_of(dataset))
    assert (image.dtype, image.shape, image.min(), image.max()) == (np.uint16, (512, 512, 3), 0, 65535)
    assert len(np.unique(image)) == 100


def test_colours_of_16_bits_are_whole(tmp_path):
    colours = np.random.default_rng(0).integers(0, 65536, (9, 8, 3), dtype=np.uint16)
    numbers = read_numbers(deep_png(colours))
    np.testing.assert_array_equal(numbers.values, colours)


def test_whole_slides_are_left_out_with_the_way_to_tile_them(tmp_path):
    (tmp_path / "slide.svs").write_bytes(b"II*\0")
    with pytest.raises(HptError, match=r"1 file \.svs .*cut the slide into tiles first, .*vips dzsave"):
        open_dataset(str(tmp_path))
    with pytest.raises(UnreadableImageError, match="vips dzsave"):
        decode(tmp_path / "slide.svs")
