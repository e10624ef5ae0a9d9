import os
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from refusals import assert_refused

from hpt_mlflow.data.decode import decode
from hpt_mlflow.data.errors import UnreadableImageError
from hpt_mlflow.data.sources import open_dataset
from hpt_mlflow.errors import HptError


@pytest.fixture
def tree(tmp_path, write_image):
    """Write images at paths relative to a folder, and give the folder."""

    def write(*paths):
        for path in paths:
            write_image(tmp_path / "data" / path)
        return tmp_path / "data"

    return write


@pytest.fixture
def list_file(tmp_path):
    """Write a list file, and give its path."""

    def write(text, name="some.txt"):
        file = tmp_path / name
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return file

    return write


@pytest.fixture
def open_list(list_file):
    """Write a list file, and open it."""
    return lambda text: open_dataset(f"list:{list_file(text)}")


def class_of(dataset):
    return {name: dataset.classes[label] for name, label in zip(dataset.names, dataset.labels, strict=True)}


def test_class_folders_are_labels(tree):
    folder = tree("dog/1.png", "cat/1.png", "cat/2.png")
    dataset = open_dataset(f"folder:{folder}")
    assert dataset.classes == ("cat", "dog")
    assert dataset.names == ["cat/1.png", "cat/2.png", "dog/1.png"]
    assert dataset.labels.tolist() == [0, 0, 1]
    assert dataset.labels.dtype == np.int64
    assert dataset.test is None
    assert dataset.name == "data"
    assert len(dataset) == 3
    assert decode(dataset.pictures[0]).shape == (5, 6, 3)


def test_a_bare_path_is_a_folder(tree):
    folder = tree("cat/1.png", "dog/1.png")
    bare, prefixed = open_dataset(str(folder)), open_dataset(f"folder:{folder}")
    assert bare.uri == prefixed.uri == f"folder:{folder.resolve()}"
    assert bare.digest == prefixed.digest


def test_the_address_of_a_folder_opens_it_again_from_elsewhere(tree, monkeypatch, tmp_path):
    folder = tree("cat/1.png", "dog/1.png")
    monkeypatch.chdir(folder.parent)
    dataset = open_dataset("data")
    monkeypatch.chdir(tmp_path.parent)
    assert open_dataset(dataset.uri).digest == dataset.digest


def test_the_official_test_part_is_the_test_part_of_the_split(tree, write_image):
    paths = [f"train/{kind}/{i}.png" for kind in ("cat", "dog") for i in range(8)]
    folder = tree(*paths, "test/cat/1.png", "test/dog/1.png")
    for number, file in enumerate(sorted(folder.rglob("*.png"))):
        write_image(file, colour=(number, 0, 0))
    dataset = open_dataset(str(folder))
    split = dataset.split(seed=0)
    assert {dataset.names[i] for i in split.test} == {"test/cat/1.png", "test/dog/1.png"}
    assert [len(split.train), len(split.validation)] == [12, 4]


@pytest.mark.parametrize(
    ("paths", "classes", "test"),
    [
        ("cat/tabby/old/1 cat/2 dog/1", ("cat", "dog"), ""),
        ("2 1", (), ""),
        ("cat/1 dog/1 stray", (), ""),
        ("10/1 9/1 -1/1", ("-1", "9", "10"), ""),
        ("--5/1 2/1", ("--5", "2"), ""),
        ("\N{SUPERSCRIPT TWO}/1 3/1", ("3", "\N{SUPERSCRIPT TWO}"), ""),
        ("001/1 1/1 01/1", ("001", "01", "1"), ""),
        ("train/cat/1 train/dog/1 test/cat/2 test/dog/2", ("cat", "dog"), "test/cat/2 test/dog/2"),
        ("Training/cat/1 Training/dog/1 Testing/cat/2", ("cat", "dog"), "Testing/cat/2"),
        ("TRAIN/cat/1 TEST/cat/1", ("cat",), "TEST/cat/1"),
        ("train/cat/1 val/cat/1 test/cat/1", ("cat",), "test/cat/1"),
        *[(f"train/cat/1 train/dog/1 {v}/cat/1", ("cat", "dog"), f"{v}/cat/1") for v in ("val", "validation", "dev")],
        ("train/1 train/2 test/1", (), "test/1"),
        ("test/1 cat/1", ("cat", "test"), ""),
        ("val/1 test/1", ("test", "val"), ""),
        ("train/1 tram/1 bus/1", ("bus", "train", "tram"), ""),
    ],
)
def test_folders_are_classes_and_parts(tree, paths, classes, test):
    dataset = open_dataset(str(tree(*(f"{path}.png" for path in paths.split()))))
    assert len(dataset) == len(paths.split())
    assert dataset.classes == classes
    assert [dataset.names[i] for i in ([] if dataset.test is None else dataset.test)] == [
        f"{n}.png" for n in test.split()
    ]
    if classes and not test:
        assert class_of(dataset) == {name: name.split("/")[0] for name in dataset.names}


def test_a_relative_folder_starts_from_the_root_and_a_tilde_is_home(tree, monkeypatch):
    folder = tree("cat/1.png")
    monkeypatch.setenv("HOME", str(folder.parent))
    for address, root in [("folder:data", str(folder.parent)), ("data", str(folder.parent)), ("~/data", None)]:
        assert open_dataset(address, root).names == ["cat/1.png"]
    assert open_dataset(str(folder), root="/nowhere").names == ["cat/1.png"]


@pytest.mark.parametrize("suffix", ["PNG", "JPG", "Jpeg", "TIF", "bmp", "webp", "gif"])
def test_suffixes_are_known_in_any_case(tree, suffix):
    assert open_dataset(str(tree(f"cat/1.{suffix}"))).names == [f"cat/1.{suffix}"]


def test_names_with_spaces_and_of_any_script_are_opened(tree):
    folder = tree("große Katze/ein Bild.png", "猫/写真 1.png", "a:b/1.png")
    dataset = open_dataset(str(folder))
    assert {unicodedata.normalize("NFC", name) for name in dataset.classes} == {"große Katze", "猫", "a:b"}
    assert all(decode(picture).shape == (5, 6, 3) for picture in dataset.pictures)


def test_a_folder_with_a_colon_in_its_path_is_a_folder(tree):
    folder = tree("a:b/1.png")
    assert open_dataset(str(folder / "a:b")).names == ["1.png"]


def test_a_loop_of_links_ends(tree):
    folder = tree("cat/1.png", "dog/1.png")
    (folder / "cat" / "loop").symlink_to(folder, target_is_directory=True)
    (folder / "dog" / "self").symlink_to(folder / "dog", target_is_directory=True)
    assert open_dataset(str(folder)).names == ["cat/1.png", "dog/1.png"]


def test_links_to_folders_are_followed(tree, tmp_path, write_image):
    folder = tree("cat/1.png")
    write_image(tmp_path / "elsewhere" / "1.png")
    (folder / "dog").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert open_dataset(str(folder)).names == ["cat/1.png", "dog/1.png"]


def test_pictures_are_in_the_order_of_the_parts_of_their_names(tree):
    folder = tree("b/1.png", "a/b/2.png", "a/b.png", "a-b/1.png", "a.png", "a/b-c/0.png", "B.png")
    names = ["B.png", "a/b/2.png", "a/b-c/0.png", "a/b.png", "a-b/1.png", "a.png", "b/1.png"]
    assert open_dataset(str(folder)).names == names
    assert [folder / name for name in names] == sorted(folder / name for name in names)


def test_of_two_ways_to_a_folder_the_first_by_name_is_taken(tree):
    folder = tree("b/1.png")
    (folder / "a").symlink_to(folder / "b", target_is_directory=True)
    assert open_dataset(str(folder)).names == ["a/1.png"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are none")
def test_what_is_only_named_like_a_picture_is_left_to_be_refused_later(tree):
    folder = tree("a.png", "folder.jpg/inside.png")
    os.mkfifo(folder / "queue.jpg")
    (folder / "itself.png").symlink_to(folder / "itself.png")
    (folder / "endless.jpg").symlink_to("/dev/zero")
    names = ["a.png", "endless.jpg", "folder.jpg/inside.png", "itself.png", "queue.jpg"]
    assert open_dataset(str(folder)).names == names


@pytest.fixture
def forbid(monkeypatch):
    """Let a folder not be listed, as others' folders are not; root may list them all."""

    def forbid_one(folder):
        scandir = os.scandir

        def scandir_of_others(path):
            # What removes temporary folders afterwards passes numbers of open files.
            if not isinstance(path, int) and Path(path) == folder:
                raise PermissionError(13, "Permission denied", str(path))
            return scandir(path)

        monkeypatch.setattr(os, "scandir", scandir_of_others)

    return forbid_one


def test_a_folder_that_cannot_be_listed_is_left_out_and_named(tree, forbid):
    folder = tree("cat/1.png", "dog/1.png", "owl/1.png")
    forbid(folder / "owl")
    dataset = open_dataset(str(folder))
    assert dataset.classes == ("cat", "dog")
    assert list(map(str, dataset.left_out)) == ["1 folder that cannot be listed (owl/): Permission denied"]


def test_a_folder_that_cannot_be_listed_at_all_is_refused(tree, forbid):
    folder = tree("1.png")
    forbid(folder)
    assert_refused(str(folder), "cannot list", folder, "Permission denied")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may look everywhere")
def test_without_permission_there_is_nothing(tree, list_file):
    folder = tree("cat/1.png", "dog/1.png", "dog/inner/1.png")
    (folder / "out.png").symlink_to(folder / "dog" / "inner" / "1.png")
    file = list_file("a.png")
    for path in (folder / "dog" / "inner", file):
        path.chmod(0)
    try:
        assert open_dataset(str(folder)).names == ["cat/1.png", "dog/1.png", "out.png"]
        assert_refused(str(folder / "dog" / "inner"), "cannot list")
        assert_refused(str(folder / "dog" / "inner" / "deeper"), "there is no folder")
        assert_refused(f"list:{file}", "cannot read the list", file)
    finally:
        (folder / "dog" / "inner").chmod(0o700)


def test_names_that_no_folder_can_have_are_refused():
    for name in ("~nobody-of-this-name/images", "no\0thing", "n" * 5000):
        assert_refused(name, "there is no folder")
        assert_refused(f"list:{name}", "there is no list file")


def test_names_that_are_no_utf_8_or_of_two_lines_can_be_shown(tmp_path, write_image):
    folder = tmp_path / os.fsdecode(b"caf\xe9\nbar")
    try:
        for name in (b"c\xe9t", b"d\nog"):
            write_image(folder / os.fsdecode(name) / "1.png")
    except OSError:
        pytest.skip("this file system has UTF-8 names only")
    dataset = open_dataset(str(folder))
    assert dataset.name == r"caf\udce9\nbar"
    assert set(dataset.classes) == {r"c\udce9t", r"d\nog"}
    assert all(decode(picture).shape == (5, 6, 3) for picture in dataset.pictures)
    with pytest.raises(HptError) as caught:
        open_dataset(str(folder / "nothing"))
    assert str(caught.value).isprintable()


def test_an_empty_folder_is_refused_with_what_was_looked_for(tmp_path):
    assert_refused(str(tmp_path), tmp_path, ".png")


@pytest.mark.parametrize("uri", ["s3:bucket", "http://example.org/images", "Folder:images"])
def test_an_unknown_kind_is_refused_with_those_known(uri):
    assert_refused(uri, repr(uri), "folder:", "list:", "builtin:", "torchvision:")


@pytest.mark.parametrize("uri", ["folder:", "list:", "builtin:", "torchvision:"])
def test_a_kind_without_a_name_is_refused(uri):
    assert_refused(uri, repr(uri))


def test_a_list_that_is_no_utf_8_names_files_all_the_same(open_list, tmp_path, write_image):
    name = b"caf\xe9.png"
    source = write_image(tmp_path / "plain.png")
    try:
        shutil.copy(source, os.path.join(os.fsencode(tmp_path), name))
    except OSError:
        pytest.skip("this file system has UTF-8 names only")
    dataset = open_list(name + b" 0")
    assert decode(dataset.pictures[0]).shape == (5, 6, 3)


@pytest.mark.parametrize("name", ["gone.png", "no\0thing.png", "n" * 5000, "."])
def test_a_list_may_name_what_is_not_there(tree, open_list, name):
    tree("a.png")
    dataset = open_list(f"data/a.png\n{name}\n")
    assert dataset.names == ["data/a.png", name]
    assert decode(dataset.pictures[0]).shape == (5, 6, 3)
    with pytest.raises(UnreadableImageError):
        decode(dataset.pictures[1])


def test_paths_of_a_list_start_from_its_folder_or_from_the_root(tree, list_file, tmp_path):
    folder = tree("a.png")
    list_file("a.png 0", "data/here.txt")
    assert open_dataset(f"list:{folder}/here.txt").pictures == [folder / "a.png"]
    file = list_file("a.png 0", "away.txt")
    assert open_dataset(f"list:{file}", root=str(folder)).pictures == [folder / "a.png"]
    assert open_dataset("list:here.txt", root=str(folder)).pictures == [folder / "a.png"]
    absolute = list_file(f"{folder}/a.png 0", "absolute.txt")
    assert open_dataset(f"list:{absolute}", root=str(tmp_path / "nowhere")).pictures == [folder / "a.png"]


def test_home_is_expanded_in_the_root_of_a_list(tree, list_file, monkeypatch):
    folder = tree("a.png")
    list_file("a.png 0", "data/here.txt")
    monkeypatch.setenv("HOME", str(folder.parent))
    assert open_dataset("list:here.txt", root="~/data").pictures == [folder / "a.png"]


def test_the_address_of_a_list_opens_it_again(open_list):
    dataset = open_list("a.png 0")
    assert open_dataset(dataset.uri).digest == dataset.digest
