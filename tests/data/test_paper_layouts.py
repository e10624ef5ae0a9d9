"""The readers of datasets of class folders and lists, and what all readers share, on small folders."""

import logging
import shutil

import numpy as np
import pytest
from paper_checks import assert_refused, classes_of, held_out, opened
from scipy.io import savemat

from hpt_mlflow.data.catalogue import BY_KEY, ENTRIES
from hpt_mlflow.data.paper_layouts import READERS
from hpt_mlflow.data.sources import open_dataset
from hpt_mlflow.errors import HptError


@pytest.fixture
def domainnet(unpacked):
    return unpacked(
        ["sketch/ant/sketch_007_000001.jpg", "sketch/ant/sketch_007_000002.jpg", "sketch/zebra/sketch_345_000001.jpg"],
        {
            "sketch_train.txt": "sketch/ant/sketch_007_000002.jpg 6\nsketch/zebra/sketch_345_000001.jpg 344\n",
            "sketch_test.txt": "sketch/ant/sketch_007_000001.jpg 6\n",
        },
    )


@pytest.fixture
def flowers(unpacked):
    root = unpacked([f"jpg/image_{i:05}.jpg" for i in range(1, 7)])
    savemat(root / "imagelabels.mat", {"labels": np.array([[77, 5, 77, 5, 77, 5]], dtype=np.uint8)})
    ids = {"trnid": [[4, 1]], "valid": [[2, 3]], "tstid": [[6, 5]]}
    savemat(root / "setid.mat", {name: np.array(values, dtype=np.uint16) for name, values in ids.items()})
    return root


def test_every_dataset_of_the_catalogue_has_a_reader():
    assert set(READERS) == {entry.key for entry in ENTRIES}


def test_domainnet_is_read_by_its_lists(domainnet):
    dataset = opened("domainnet-sketch", domainnet)
    assert classes_of(dataset) == {
        "sketch/ant/sketch_007_000001.jpg": "ant",
        "sketch/ant/sketch_007_000002.jpg": "ant",
        "sketch/zebra/sketch_345_000001.jpg": "zebra",
    }
    assert dataset.classes == ("ant", "zebra")
    assert dataset.labels.dtype == np.int64
    assert held_out(dataset) == {"sketch/ant/sketch_007_000001.jpg"}
    assert dataset.name == "domainnet-sketch"


def test_domainnet_leaves_out_test_images_of_a_class_that_train_has_none_of(domainnet, write_image, caplog):
    for i in (1, 2):
        write_image(domainnet / f"sketch/bee/sketch_030_00000{i}.jpg")
    with open(domainnet / "sketch_test.txt", "a") as file:
        file.write("sketch/bee/sketch_030_000001.jpg 29\nsketch/bee/sketch_030_000002.jpg 29\n")
    with caplog.at_level(logging.WARNING, "hpt_mlflow"):
        dataset = opened("domainnet-sketch", domainnet)
    assert dataset.classes == ("ant", "zebra")
    assert set(dataset.names) == {
        "sketch/ant/sketch_007_000001.jpg",
        "sketch/ant/sketch_007_000002.jpg",
        "sketch/zebra/sketch_345_000001.jpg",
    }
    assert classes_of(dataset)["sketch/zebra/sketch_345_000001.jpg"] == "zebra"
    assert held_out(dataset) == {"sketch/ant/sketch_007_000001.jpg"}
    (warning,) = [record.getMessage() for record in caplog.records if "bee" in record.getMessage()]
    assert "2 test images" in warning


def test_domainnet_quickdraw_is_png(unpacked):
    root = unpacked(
        ["quickdraw/ant/5347855063580672.png", "quickdraw/ant/4503626191994880.png"],
        {
            "quickdraw_train.txt": "quickdraw/ant/5347855063580672.png 6\n",
            "quickdraw_test.txt": "quickdraw/ant/4503626191994880.png 6\n",
        },
    )
    assert held_out(opened("domainnet-quickdraw", root)) == {"quickdraw/ant/4503626191994880.png"}


def test_domainnet_with_its_lists_in_splits(domainnet):
    before = opened("domainnet-sketch", domainnet)
    (domainnet / "splits").mkdir()
    for part in ("train", "test"):
        shutil.move(domainnet / f"sketch_{part}.txt", domainnet / "splits")
    assert opened("domainnet-sketch", domainnet).digest == before.digest


def test_domainnet_of_another_domain_is_not_there(domainnet):
    assert_refused("domainnet-real", domainnet, "real is missing", "ai.bu.edu/M3SDA")


@pytest.mark.parametrize(
    "line",
    ["sketch/ant/x.jpg", "sketch/ant/x.jpg six", "/etc/ant/x.jpg 6", "sketch/../x.jpg 6", "sketch/ant/x.jpg 344"],
)
def test_domainnet_refuses_a_line_that_is_none_of_its(domainnet, line):
    (domainnet / "sketch_test.txt").write_text(line)
    assert_refused("domainnet-sketch", domainnet, "sketch_test.txt")


def test_resisc45_is_folders_of_classes(unpacked):
    root = unpacked(["sea_ice/sea_ice_001.jpg", "airport/airport_700.jpg"])
    dataset = opened("resisc45", root)
    assert classes_of(dataset) == {"airport/airport_700.jpg": "airport", "sea_ice/sea_ice_001.jpg": "sea_ice"}
    assert dataset.test is None
    assert dataset.groups is None


def test_the_folder_that_an_archive_unpacks_to_may_lie_in_the_root(unpacked, tmp_path):
    root = unpacked(["NWPU-RESISC45/airport/airport_001.jpg", "NWPU-RESISC45/lake/lake_001.jpg"])
    assert classes_of(opened("resisc45", root)) == {"airport/airport_001.jpg": "airport", "lake/lake_001.jpg": "lake"}


def test_other_class_folders_are_not_resisc45(unpacked):
    assert_refused("resisc45", unpacked(["cat/1.jpg", "dog/1.jpg"]), "cat/1.jpg", "not named after its folder")


def test_uc_merced_is_folders_of_classes_in_images(unpacked):
    root = unpacked(["Images/river/river00.tif", "Images/beach/beach99.tif", "Images/beach/beach01.tif"])
    dataset = opened("uc-merced", root)
    assert classes_of(dataset) == {
        "Images/beach/beach01.tif": "beach",
        "Images/beach/beach99.tif": "beach",
        "Images/river/river00.tif": "river",
    }


def test_flowers_are_read_from_their_arrays(flowers):
    dataset = opened("flowers-102", flowers)
    assert classes_of(dataset) == {
        "jpg/image_00001.jpg": "77",
        "jpg/image_00002.jpg": "5",
        "jpg/image_00003.jpg": "77",
        "jpg/image_00004.jpg": "5",
        "jpg/image_00005.jpg": "77",
        "jpg/image_00006.jpg": "5",
    }
    assert dataset.classes == ("5", "77")
    assert held_out(dataset) == {"jpg/image_00005.jpg", "jpg/image_00006.jpg"}


@pytest.mark.parametrize("content", [b"", b"\x80\x04cos\nsystem\n", b"MATLAB 5.0 MAT-file" + b"\xff" * 300])
def test_flowers_refuse_a_file_that_is_not_of_matlab_5(flowers, content):
    (flowers / "imagelabels.mat").write_bytes(content)
    assert_refused("flowers-102", flowers, "imagelabels.mat")


def test_flowers_refuse_parts_beyond_the_images(flowers):
    ids = {"trnid": [[1]], "valid": [[2]], "tstid": [[9]]}
    savemat(flowers / "setid.mat", {name: np.array(values, dtype=np.uint16) for name, values in ids.items()})
    assert_refused("flowers-102", flowers, "setid.mat", "6 images")


@pytest.mark.parametrize("key", BY_KEY)
def test_a_folder_that_is_missing_or_empty_is_refused(key, tmp_path):
    assert_refused(key, tmp_path / "nowhere", "no folder", tmp_path / "nowhere", BY_KEY[key].source)
    assert_refused(key, tmp_path, BY_KEY[key].title, f"hpt datasets {key}", BY_KEY[key].source)


@pytest.mark.parametrize("key", BY_KEY)
def test_a_folder_of_other_images_is_refused(key, unpacked):
    assert_refused(key, unpacked(["cats/1.png", "dogs/1.png", "3.png"]), BY_KEY[key].title)


def test_images_that_are_not_there_are_refused(domainnet):
    shutil.rmtree(domainnet / "sketch")
    (domainnet / "sketch").mkdir()
    assert_refused("domainnet-sketch", domainnet, "sketch/ant/sketch_007_000002.jpg is missing")


@pytest.mark.parametrize("name", ["sketch/ant/sketch_007_000001.jpg", "sketch/ant/sketch_007_000002.jpg"])
def test_images_of_one_part_that_are_not_there_are_refused(domainnet, name):
    (domainnet / "sketch_train.txt").write_text("sketch/ant/sketch_007_000002.jpg 6\n")
    (domainnet / name).unlink()
    assert_refused("domainnet-sketch", domainnet, f"{name} is missing")


def test_a_small_part_of_a_dataset_is_warned_of(domainnet, caplog):
    with caplog.at_level(logging.WARNING, "hpt_mlflow"):
        opened("domainnet-sketch", domainnet)
    assert "3 images of 69128" in caplog.text


def test_the_address_opens_the_dataset_again_from_elsewhere(domainnet, monkeypatch, tmp_path):
    monkeypatch.chdir(domainnet.parent)
    dataset = open_dataset("paper:domainnet-sketch?root=unpacked")
    assert dataset.uri == f"paper:domainnet-sketch?root={domainnet}"
    monkeypatch.chdir("/")
    assert open_dataset(dataset.uri).digest == dataset.digest
    assert open_dataset("paper:domainnet-sketch", root=str(domainnet)).uri == dataset.uri


def test_the_digest_changes_with_the_official_split(domainnet, write_image):
    write_image(domainnet / "sketch/ant/sketch_007_000003.jpg")
    lists = [domainnet / f"sketch_{part}.txt" for part in ("train", "test")]
    lines = "".join(file.read_text() for file in lists).splitlines(keepends=True)
    lines.append("sketch/ant/sketch_007_000003.jpg 6\n")
    lists[1].write_text("".join(lines[2:]))
    before = opened("domainnet-sketch", domainnet)
    lists[0].write_text("".join(lines[:3]))
    lists[1].write_text(lines[3])
    after = opened("domainnet-sketch", domainnet)
    assert after.names == before.names
    assert after.digest != before.digest


def test_a_name_that_the_paper_has_not_is_refused():
    with pytest.raises(HptError, match="no dataset 'resisc'.*did you mean resisc45.*chest-xray-kids"):
        open_dataset("paper:resisc?root=/tmp")


def test_a_dataset_without_a_folder_is_refused():
    with pytest.raises(HptError, match=r"needs its folder; write paper:resisc45\?root=DIR"):
        open_dataset("paper:resisc45")
