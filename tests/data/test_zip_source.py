import io
import os
import pickle
import stat
import struct
import zipfile

import numpy as np
import pytest
from PIL import Image
from refusals import assert_refused

from hpt_mlflow.data import containers
from hpt_mlflow.data.decode import decode
from hpt_mlflow.data.errors import UnreadableImageError
from hpt_mlflow.data.sources import open_dataset


def png(value=0, size=(6, 5)):
    buffer = io.BytesIO()
    Image.new("RGB", size, (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


def write_zip(file, members, method=zipfile.ZIP_DEFLATED):
    """Write an archive of names, or `ZipInfo`s, and contents."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return file


def values_of(dataset):
    return [int(decode(picture)[0, 0, 0]) for picture in dataset.pictures]


def labels_of(dataset):
    return [dataset.classes[label] for label in dataset.labels]


LAYOUTS = {
    "classes": ["b/1.png", "a/2.png", "a/inner/3.PNG", "a.png"] + [f"b/{i}.jpg" for i in range(20)],
    "parts": ["train/a/1.png", "train/b/2.png", "test/a/3.png", "test/b/4.png", "unlabeled/5.png", "more/6.png"],
    "flat": ["1.png", "10.png", "2.png", "notes.txt", "scan.jxl", "video.mp4"],
    "left out": [
        "a/1.png",
        "b/2.png",
        ".hidden/3.png",
        "__MACOSX/a/._1.png",
        "a/.DS_Store",
        "mlruns/4.png",
        "@eaDir/5.png",
    ],
    "outputs": ["a/1.png", "b/2.png", "out/MLmodel", "out/3.png"],
    "sniffed": ["a/1.png", "b/2.png", "a/IMG", "b/IMG.one"],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_archive_is_read_as_the_folder_that_it_unpacks_to(layout, method, tmp_path):
    file = write_zip(tmp_path / "all.zip", [(name, png(i)) for i, name in enumerate(LAYOUTS[layout])], method)
    before = sorted(tmp_path.iterdir())
    packed = open_dataset(f"zip:{file}")
    contents = packed.contents.of(np.arange(len(packed)))
    values = values_of(packed)
    assert sorted(tmp_path.iterdir()) == before
    with zipfile.ZipFile(file) as archive:
        archive.extractall(tmp_path / "unpacked")
    folder = open_dataset(str(tmp_path / "unpacked"))
    assert packed.names == folder.names
    assert values == values_of(folder)
    assert packed.classes == folder.classes
    assert packed.left_out == folder.left_out
    assert packed.unlabelled_because == folder.unlabelled_because
    for one, other in ((packed.labels, folder.labels), (packed.test, folder.test)):
        assert (one is None) == (other is None)
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(contents, folder.contents.of(np.arange(len(folder))))
    assert packed.digest == folder.digest
    one, other = packed.split(3), folder.split(3)
    for part in ("train", "validation", "test", "unlabelled"):
        np.testing.assert_array_equal(getattr(one, part), getattr(other, part))


def test_it_opens_again_from_its_address_and_travels_to_workers(tmp_path, monkeypatch):
    write_zip(tmp_path / "some.zip", [(f"{c}/{i}.png", png(i)) for c in "ab" for i in range(3)])
    monkeypatch.chdir(tmp_path)
    dataset = open_dataset("zip:some.zip")
    assert (dataset.name, dataset.uri) == ("some", f"zip:{tmp_path}/some.zip")
    assert open_dataset(dataset.uri).digest == dataset.digest == open_dataset("zip:some.zip", str(tmp_path)).digest
    monkeypatch.chdir("/")
    assert pickle.loads(pickle.dumps(dataset.pictures))[5] == png(2)  # noqa: S301
    assert dataset.pictures[np.int64(-1)] == png(2)


def test_folders_around_everything_do_not_count(tmp_path):
    members = [("photos/v1/cat/1.png", png(1)), ("photos/v1/dog/2.png", png(2)), ("__MACOSX/photos/._v1", b"")]
    dataset = open_dataset(f"zip:{write_zip(tmp_path / 'a.zip', members)}")
    assert dataset.names == ["cat/1.png", "dog/2.png"]
    assert labels_of(dataset) == ["cat", "dog"]
    # A folder without folders may be a class.
    dataset = open_dataset(f"zip:{write_zip(tmp_path / 'b.zip', [('cat/1.png', png(1)), ('cat/2.png', png(2))])}")
    assert labels_of(dataset) == ["cat", "cat"]


def test_several_archives_are_folders_of_their_names(tmp_path):
    for part in ("train", "test"):
        members = [(f"{part}/{c}/{part}{i}.png", png(i)) for c in ("cat", "dog") for i in range(2)]
        write_zip(tmp_path / "parts" / f"{part}.zip", members)
    dataset = open_dataset(f"zip:{tmp_path}/parts")
    assert dataset.classes == ("cat", "dog")
    assert [dataset.names[i].split("/")[0] for i in dataset.test] == ["test"] * 4
    assert len(dataset) == 8
    write_zip(tmp_path / "classes" / "a-b.ZIP", [("x/1.png", png(1))])
    write_zip(tmp_path / "classes" / "a.zip", [("2.png", png(2))])
    dataset = open_dataset(f"zip:{tmp_path}/classes")
    assert dict(zip(dataset.names, values_of(dataset), strict=True)) == {"a-b/x/1.png": 1, "a/2.png": 2}
    assert set(labels_of(dataset)) == {"a", "a-b"}
    assert open_dataset(f"zip:{tmp_path}/classes/a.zip::{tmp_path}/classes/a-b.ZIP").names == dataset.names
    assert len(open_dataset(f"zip:{tmp_path}/parts/{{train,test}}.zip", every_image=True)) == 8


def test_names_of_any_kind_are_names_and_never_paths(tmp_path):
    names = ["../../up/1.png", "/abs/2.png", "win\\dows\\3.png", "größe/4.png", "猫/5.png"]
    file = write_zip(tmp_path / "a.zip", [(name, png(i)) for i, name in enumerate(names)])
    dataset = open_dataset(f"zip:{file}")
    # What starts with a dot is hidden, as anywhere.
    assert set(dataset.names) == {"abs/2.png", "win/dows/3.png", "größe/4.png", "猫/5.png"}
    assert os.listdir(tmp_path) == ["a.zip"]


def test_links_are_left_out_and_of_two_members_of_one_name_the_last_counts(tmp_path):
    link = zipfile.ZipInfo("a/link.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with pytest.warns(UserWarning, match="Duplicate"):
        file = write_zip(tmp_path / "a.zip", [(link, b"/etc/passwd"), ("a/1.png", png(1)), ("a/1.png", png(2))])
    dataset = open_dataset(f"zip:{file}")
    assert values_of(dataset) == [2]
    assert {entry.what: entry.count for entry in dataset.left_out} == {"links": 1}


def test_encrypted_archives_are_refused(tmp_path):
    file = write_zip(tmp_path / "a.zip", [("1.png", png())])
    content = bytearray(file.read_bytes())
    at = content.index(b"PK\1\2") + 8
    content[at] |= 1
    file.write_bytes(content)
    assert_refused(f"zip:{file}", "a.zip is encrypted (1.png)", "unpack it")


def test_what_is_no_whole_archive_is_refused(tmp_path):
    whole = write_zip(tmp_path / "a.zip", [(f"{i}.png", png(i)) for i in range(9)]).read_bytes()
    file = tmp_path / "b.zip"
    for content in (b"", b"PK\3\4", whole[:-30], whole[: len(whole) // 2], b"no archive" * 50, whole[-60:]):
        file.write_bytes(content)
        assert_refused(f"zip:{file}", "b.zip is not a whole .zip archive")
    os.mkfifo(tmp_path / "pipe.zip")
    assert_refused(f"zip:{tmp_path}/pipe.zip", "not a regular file")
    assert_refused(f"zip:{tmp_path}/none.zip", "there is no archive")
    (tmp_path / "empty").mkdir()
    assert_refused(f"zip:{tmp_path}/empty", "no archives in")
    assert_refused(f"zip:{write_zip(tmp_path / 'c.zip', [('1.txt', b'')])}", "no images in")
    assert_refused("zip:https://example.org/a.zip", "copy the archives")
    assert_refused("zip:", "'zip:'")


def first_of(file):
    return open_dataset(f"zip:{file}").pictures[0]


def test_bombs_are_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(containers, "MOST_BYTES", 1 << 20)
    honest = write_zip(tmp_path / "a.zip", [("1.png", bytes(1 << 22))])
    with pytest.raises(UnreadableImageError, match="4194304 bytes are too many"):
        first_of(honest)
    # It declares fewer bytes than it unpacks to.
    content = bytearray(honest.read_bytes())
    at = content.index(b"PK\1\2") + 24
    content[at : at + 4] = struct.pack("<I", 1000)
    honest.write_bytes(content)
    with pytest.raises(UnreadableImageError, match="checksum"):
        first_of(honest)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_rare_ways_to_compress_are_named(method, tmp_path):
    file = write_zip(tmp_path / "a.zip", [("1.png", png())], method)
    with pytest.raises(UnreadableImageError, match=r"compressed by (bzip2|LZMA); pack the archive again"):
        first_of(file)


def test_damaged_members_are_unreadable_and_the_others_are_not(tmp_path):
    file = write_zip(tmp_path / "a.zip", [("1.png", png(1)), ("2.png", png(2))], zipfile.ZIP_STORED)
    whole = file.read_bytes()
    for at, words in ((60, "checksum"), (0, "header is not where")):
        content = bytearray(whole)
        content[at] ^= 255
        file.write_bytes(content)
        with pytest.raises(UnreadableImageError, match=words):
            first_of(file)
        assert decode(open_dataset(f"zip:{file}").pictures[1])[0, 0, 0] == 2


def test_an_archive_that_changes_afterwards_is_unreadable_and_not_misread(tmp_path):
    file = write_zip(tmp_path / "a.zip", [("1.png", png(1))])
    pictures = open_dataset(f"zip:{file}").pictures
    write_zip(file, [("1.png", png(2)), ("2.png", png(3))])
    with pytest.raises(UnreadableImageError, match="archive has changed"):
        pictures[0]


def test_large_archives_are_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for i in range(3):
            info = zipfile.ZipInfo(f"{i}.png")
            with archive.open(info, "w", force_zip64=True) as member:
                member.write(png(i))
    (tmp_path / "b.zip").write_bytes(b"#!/bin/sh\nexit\n" + (tmp_path / "a.zip").read_bytes())
    assert (
        values_of(open_dataset(f"zip:{tmp_path}/a.zip"))
        == values_of(open_dataset(f"zip:{tmp_path}/b.zip"))
        == [0, 1, 2]
    )
