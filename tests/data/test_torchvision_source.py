import os
import struct
import sys

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from hpt_mlflow.data.decode import decode
from hpt_mlflow.data.errors import UnreadableImageError
from hpt_mlflow.data.images import Images
from hpt_mlflow.data.sources import open_dataset
from hpt_mlflow.errors import HptError


def write_idx(file, array):
    file.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    file.write_bytes(header + array.astype(np.uint8).tobytes())


@pytest.fixture
def mnist_root(tmp_path):
    """Twenty images to train with, of the value of their index, and ten to test with, of the value 100 + index."""
    for part, count, start in (("train", 20, 0), ("t10k", 10, 100)):
        values = np.arange(start, start + count)
        write_idx(tmp_path / "MNIST/raw" / f"{part}-images-idx3-ubyte", np.tile(values[:, None, None], (1, 28, 28)))
        write_idx(tmp_path / "MNIST/raw" / f"{part}-labels-idx1-ubyte", np.arange(count) % 10)
    return str(tmp_path)


@pytest.fixture
def eurosat_root(tmp_path, write_image):
    """Two classes of 100 images in the layout of EuroSAT."""
    for i in range(100):
        write_image(tmp_path / "eurosat/2750/Forest" / f"Forest_{i:03}.png", colour=(0, 100, i))
        write_image(tmp_path / "eurosat/2750/River" / f"River_{i:03}.png", colour=(0, i, 200))
    return tmp_path


def test_mnist_is_opened_with_its_own_test_part(mnist_root):
    dataset = open_dataset("torchvision:MNIST", mnist_root)
    assert (dataset.name, dataset.uri, len(dataset)) == ("mnist", f"torchvision:MNIST?root={mnist_root}", 30)
    assert dataset.test.tolist() == list(range(20, 30))
    assert dataset.labels.tolist() == [*range(10), *range(10), *range(10)]
    assert dataset.labels.dtype == np.int64
    assert dataset.classes[3] == "3 - three"
    assert len(set(dataset.names)) == 30


def test_pictures_of_all_parts_are_read_by_their_index(mnist_root):
    pictures = open_dataset("torchvision:MNIST", mnist_root).pictures
    values = [int(decode(pictures[i])[0, 0, 0]) for i in range(len(pictures))]
    assert values == [*range(20), *range(100, 110)]
    assert int(decode(pictures[np.int64(20)])[0, 0, 0]) == 100
    assert len(list(pictures)) == 30


def test_the_split_keeps_to_the_test_part_of_torchvision(mnist_root):
    split = open_dataset("torchvision:MNIST", mnist_root).split(seed=0)
    assert split.test.tolist() == list(range(20, 30))
    assert sorted(split.seen) == list(range(20))


def test_the_digest_is_the_same_each_time_and_differs_with_the_labels(mnist_root, tmp_path):
    first = open_dataset("torchvision:MNIST", mnist_root).digest
    assert open_dataset("torchvision:MNIST", mnist_root).digest == first
    write_idx(tmp_path / "MNIST/raw/t10k-labels-idx1-ubyte", np.zeros(10))
    assert open_dataset("torchvision:MNIST", mnist_root).digest != first


def test_the_digest_differs_with_the_pictures(tmp_path, write_image):
    for root, size in (("one", (6, 5)), ("two", (60, 50))):
        for kind in ("cat", "dog"):
            write_image(tmp_path / root / kind / f"{root}.png", size)
    one, two = (open_dataset("torchvision:ImageFolder", str(tmp_path / root)) for root in ("one", "two"))
    assert one.digest != two.digest


def test_a_dataset_without_parts_is_one_part(eurosat_root):
    dataset = open_dataset("torchvision:EuroSAT", str(eurosat_root))
    assert dataset.classes == ("Forest", "River")
    assert np.bincount(dataset.labels).tolist() == [100, 100]
    assert dataset.test is None
    assert decode(dataset.pictures[199])[0, 0].tolist() == [0, 99, 200]


def test_a_damaged_picture_of_torchvision_is_skipped(eurosat_root):
    (eurosat_root / "eurosat/2750/Forest/Forest_007.png").write_bytes(b"damaged")
    images = Images(open_dataset("torchvision:EuroSAT", str(eurosat_root)), np.arange(200), smallest_side=8)
    assert list(images.unreadable) == [7]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are none")
def test_what_is_only_named_like_a_picture_does_not_block(eurosat_root):
    forest = eurosat_root / "eurosat/2750/Forest"
    (forest / "Forest_007.png").unlink()
    os.mkfifo(forest / "Forest_007.png")
    images = Images(open_dataset("torchvision:EuroSAT", str(eurosat_root)), np.arange(200), smallest_side=8)
    assert images.unreadable == {7: "it is not a regular file"}


@pytest.mark.parametrize(
    ("name", "folders"),
    # Of Caltech256, torchvision does not say which file is which picture, and opens them itself.
    [("EuroSAT", "eurosat/2750/{}"), ("Caltech256", "caltech256/256_ObjectCategories/{}")],
)
def test_no_program_is_run_for_a_picture(tmp_path, monkeypatch, name, folders):
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch '{tmp_path}/trace'\n")
    program.chmod(0o700)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    for number, kind in (("001", "001.cat"), ("002", "002.dog")):
        folder = tmp_path / folders.format(kind)
        folder.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(folder / f"{number}_0001.jpg", "EPS")
    pictures = open_dataset(f"torchvision:{name}", str(tmp_path)).pictures
    assert len(pictures) == 2
    for i in range(2):
        with pytest.raises(UnreadableImageError):
            decode(pictures[i])
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    ("name", "folder", "validation", "kinds"),
    [("RenderedSST2", "rendered-sst2", "valid", ("negative", "positive")), ("Country211", "country211", "valid", "ab")],
)
def test_a_dataset_in_three_parts_keeps_the_last_as_test(tmp_path, write_image, name, folder, validation, kinds):
    for value, part in enumerate(("train", validation, "test")):
        for kind in kinds:
            write_image(tmp_path / folder / part / kind / "1.png", colour=(value, 0, 0))
    dataset = open_dataset(f"torchvision:{name}", str(tmp_path))
    assert len(dataset) == 6
    assert dataset.test.tolist() == [4, 5]
    assert [int(decode(dataset.pictures[i])[0, 0, 0]) for i in range(6)] == [0, 0, 1, 1, 2, 2]
    assert dataset.labels.tolist() == [0, 1] * 3
    assert dataset.classes == tuple(kinds)


def test_a_dataset_that_needs_no_files_needs_no_root():
    dataset = open_dataset("torchvision:FakeData")
    assert len(dataset) == 1000
    assert dataset.test is None
    assert dataset.classes == tuple("0123456789")
    assert isinstance(dataset.pictures[5], Image.Image)
    assert decode(dataset.pictures[5], smallest_side=32).shape == (32, 32, 3)


@pytest.mark.parametrize(
    ("name", "words"),
    [("MNITS", ["'MNITS'", "MNIST"]), ("mnist", ["'mnist'"]), ("Qwertz", ["'Qwertz'"]), ("os", ["'os'"])],
)
def test_an_unknown_name_is_refused_with_a_suggestion(name, words):
    with pytest.raises(HptError) as caught:
        open_dataset(f"torchvision:{name}", "/nowhere")
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words)


def test_a_missing_root_is_asked_for():
    with pytest.raises(HptError, match="torchvision:MNIST needs a folder .* add --root") as caught:
        open_dataset("torchvision:MNIST")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["ImageFolder", "ImageNet", "CocoDetection"])
def test_files_that_are_not_there_are_refused_with_the_root(tmp_path, name):
    with pytest.raises(HptError) as caught:
        open_dataset(f"torchvision:{name}", str(tmp_path / "nothing"))
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)
    assert str(tmp_path / "nothing") in str(caught.value)


def test_a_dataset_that_needs_another_package_is_refused_with_its_name(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lmdb", None)  # as if it were not installed
    with pytest.raises(HptError, match="lmdb"):
        open_dataset("torchvision:LSUN", str(tmp_path))


def test_a_dataset_of_boxes_is_refused(tmp_path, write_image):
    folder = tmp_path / "VOCdevkit/VOC2012"
    for name in ("1", "2"):
        write_image(folder / "JPEGImages" / f"{name}.jpg")
    (folder / "Annotations").mkdir()
    for name in ("1", "2"):
        (folder / "Annotations" / f"{name}.xml").write_text("<annotation><folder>VOC2012</folder></annotation>")
    (folder / "ImageSets/Main").mkdir(parents=True)
    (folder / "ImageSets/Main/train.txt").write_text("1\n2\n")
    with pytest.raises(HptError, match="one class each"):
        open_dataset("torchvision:VOCDetection", str(tmp_path))
