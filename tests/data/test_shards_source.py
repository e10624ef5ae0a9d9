import io
import os
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image
from refusals import assert_refused

from hpt_mlflow.data import containers
from hpt_mlflow.data import shards as shards_module
from hpt_mlflow.data.containers import MOST_FILES, expand
from hpt_mlflow.data.decode import decode
from hpt_mlflow.data.errors import UnreadableImageError
from hpt_mlflow.data.sources import open_dataset


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """A cache of its own for each test."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("HPT_CACHE", str(folder))
    return folder


def png(value=0, size=(6, 5)):
    buffer = io.BytesIO()
    Image.new("RGB", size, (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(file, members, format=tarfile.PAX_FORMAT):
    """Write a tar of names and contents; of a name and a number, a member of that type."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w", format=format) as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
            else:
                member.type, member.linkname = content
                archive.addfile(member)
    return file


def samples(*values, folder=""):
    """Pictures of these grey values, each with its value halved as its class."""
    return [
        entry
        for value in values
        for entry in ((f"{folder}{value:04}.png", png(value)), (f"{folder}{value:04}.cls", str(value // 2).encode()))
    ]


def values_of(dataset):
    return [int(decode(picture)[0, 0, 0]) for picture in dataset.pictures]


def test_a_folder_of_shards_is_all_its_pictures_with_their_labels(tmp_path):
    write_tar(tmp_path / "cats" / "b.tar", samples(6, 7, 8))
    write_tar(tmp_path / "cats" / "a.tar", samples(20, 21))
    (tmp_path / "cats" / "readme.txt").write_text("no shard")
    (tmp_path / "cats" / ".hidden.tar").write_text("no shard")
    dataset = open_dataset(f"shards:{tmp_path}/cats")
    assert dataset.names == ["a.tar/0020.png", "a.tar/0021.png", "b.tar/0006.png", "b.tar/0007.png", "b.tar/0008.png"]
    assert values_of(dataset) == [20, 21, 6, 7, 8]
    assert pickle.loads(pickle.dumps(dataset.pictures))[4] == png(8)  # noqa: S301
    assert dataset.classes == ("3", "4", "10")
    assert dataset.labels.tolist() == [2, 2, 0, 0, 1]
    assert dataset.labels.dtype == np.int64
    assert (dataset.name, dataset.uri, dataset.test) == ("cats", f"shards:{tmp_path}/cats", None)
    assert open_dataset(dataset.uri).digest == dataset.digest


def test_what_webdataset_writes_is_read_as_webdataset_reads_it(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (40, 9, 7, 3), np.uint8)
    with webdataset.ShardWriter(str(tmp_path / "train-%06d.tar"), maxcount=15, verbose=0) as writer:
        for i, image in enumerate(pixels):
            name = f"{'a' * 120 if i == 7 else 'part'}/größe.{i}" if i % 2 else f"{i:05}"
            writer.write({"__key__": name.replace(".", "-"), "png": image, "cls": i % 3, "json": {"i": i}, "txt": "x"})
    pattern = f"{tmp_path}/train-{{000000..000002}}.tar"
    theirs = list(webdataset.WebDataset(pattern, shardshuffle=False).decode("rgb8").to_tuple("__key__", "png", "cls"))
    ours = open_dataset(f"shards:{pattern}")
    assert len(ours) == len(theirs) == 40
    for i, (key, image, label) in enumerate(theirs):
        assert ours.names[i].partition(".tar/")[2] == f"{key}.png"
        np.testing.assert_array_equal(decode(ours.pictures[i]), image)
        assert ours.classes[ours.labels[i]] == str(label)


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_names_and_names_of_any_script_are_read(tmp_path, format):
    names = ["deep/" * 40 + "1.png", "猫" * 60 + ".png", "x" * 300 + ".png", "./1.png", "../../etc/2.png", "/abs/3.png"]
    names.append(os.fsdecode(b"caf\xe9.png"))
    write_tar(tmp_path / "a.tar", [(name, png(i)) for i, name in enumerate(names)], format)
    dataset = open_dataset(f"shards:{tmp_path}/a.tar")
    assert dataset.names == [f"a.tar/{name}" for name in names]
    assert values_of(dataset) == list(range(len(names)))
    assert dataset.labels is None
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.tar"]


def test_classes_are_any_text_and_suffixes_of_any_case(tmp_path):
    write_tar(
        tmp_path / "a.tar",
        [("1.CLS", b" great cat\r\n"), ("1.JPG", png(1)), ("2.png", png(2)), ("2.cls", "猫".encode())],
    )
    dataset = open_dataset(f"shards:{tmp_path}")
    assert dataset.classes == ("great cat", "猫")
    assert dataset.names == ["a.tar/1.JPG", "a.tar/2.png"]


def account_of(dataset):
    return {entry.what: entry.count for entry in dataset.left_out}


def test_the_picture_of_a_sample_is_the_one_without_a_further_suffix(tmp_path):
    members = [("a/1.mask.png", png(99)), ("a/1.png", png(1)), ("a/1.jpg", png(98)), ("b/1.left.png", png(2))]
    members += [("b/2.json", b"{}"), ("b/.3.png", png(97)), ("__meta__.png", png(96)), ("none", b"")]
    write_tar(tmp_path / "a.tar", members)
    dataset = open_dataset(f"shards:{tmp_path}")
    assert dataset.names == ["a.tar/a/1.png", "a.tar/b/1.left.png"]
    assert values_of(dataset) == [1, 2]
    assert account_of(dataset) == {"samples without a picture": 1, "further pictures of a sample": 2}


def test_links_pipes_and_folders_are_left_out_and_counted(tmp_path):
    members = [("folder.png", (tarfile.DIRTYPE, "")), ("1.png", png(1)), ("2.png", (tarfile.LNKTYPE, "1.png"))]
    members += [("3.png", (tarfile.SYMTYPE, "/etc/passwd")), ("4.png", (tarfile.FIFOTYPE, "")), ("5.png", png(5))]
    write_tar(tmp_path / "a.tar", members)
    dataset = open_dataset(f"shards:{tmp_path}")
    assert values_of(dataset) == [1, 5]
    assert account_of(dataset) == {"links": 3}


def test_an_empty_picture_is_unreadable_and_the_others_are_not(tmp_path):
    write_tar(tmp_path / "a.tar", [("1.png", png(1)), ("2.png", b""), ("3.png", png(3))])
    pictures = open_dataset(f"shards:{tmp_path}").pictures
    assert [len(pictures), pictures[np.int64(1)]] == [3, b""]
    with pytest.raises(UnreadableImageError):
        decode(pictures[1])
    assert decode(pictures[2])[0, 0, 0] == 3
    with pytest.raises(IndexError):
        pictures[3]


def test_a_picture_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    write_tar(tmp_path / "a.tar", [("1.png", png(1))])
    monkeypatch.setattr(containers, "MOST_BYTES", 10)
    with pytest.raises(UnreadableImageError, match="too many"):
        open_dataset(f"shards:{tmp_path}").pictures[0]


def test_labels_for_some_are_refused_with_the_first_without(tmp_path):
    write_tar(tmp_path / "a.tar", samples(1))
    write_tar(tmp_path / "b.tar", [*samples(2), ("3.png", png(3)), ("4.png", png(4))])
    assert_refused(f"shards:{tmp_path}", "'b.tar/3.png'")
    write_tar(tmp_path / "b.tar", [("3.png", png(3)), ("3.cls", b" ")])
    assert_refused(f"shards:{tmp_path}", "'b.tar/3.png'")
    write_tar(tmp_path / "b.tar", [("3.png", png(3)), ("3.cls", bytes(2000))])
    assert_refused(f"shards:{tmp_path}", "'3.cls'", "2000 bytes")


def test_what_is_no_whole_plain_tar_is_refused(tmp_path):
    whole = write_tar(tmp_path / "whole.tar", samples(1, 2, 3)).read_bytes()
    file = tmp_path / "a.tar"
    for content, words in [
        (whole[: 512 + 20], "after 1 members, unexpected end of data"),  # within a picture
        (whole[: 5 * 1024 + 512 + 100], "members"),
        (whole[:2048] + b"x" * 512 + whole[2560:], "after 2 members, at byte 2048"),
        (whole[: 2048 + 100], "cut off after 2 members"),  # within a header
        (b"", "not a whole .tar"),
        (b"no tar at all" * 100, "not a whole .tar"),
        (b"\x1f\x8b" + bytes(600), "unpack it"),
    ]:
        file.write_bytes(content)
        assert_refused(f"shards:{file}", file, words)
    # Without an end mark, it may be all there is.
    file.write_bytes(whole[: 6 * 1024])
    assert values_of(open_dataset(f"shards:{file}")) == [1, 2, 3]


def test_a_member_of_negative_size_does_not_lead_round_in_circles(tmp_path):
    # Behind two members of 1024 bytes each, it leads back to the second.
    before = write_tar(tmp_path / "a.tar", samples(1)).read_bytes()[:2048]
    header = bytearray(tarfile.TarInfo("1.png").tobuf())
    header[124:136] = b"\xff" * 10 + b"\xfa\x00"  # -1536, as base 256
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "a.tar").write_bytes(before + bytes(header) + bytes(1024))
    assert_refused(f"shards:{tmp_path}", "a.tar")


def test_a_sparse_member_is_refused(tmp_path):
    member = tarfile.TarInfo("1.png")
    member.pax_headers = {
        "GNU.sparse.major": "0",
        "GNU.sparse.minor": "1",
        "GNU.sparse.map": "0,1",
        "GNU.sparse.size": "9",
    }
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.addfile(member)
    assert_refused(f"shards:{tmp_path}", "'1.png'", "sparse")


def test_shards_that_are_not_there_are_refused_with_what_to_do(tmp_path):
    write_tar(tmp_path / "none" / "a.tar", [("1.txt", b"")])
    write_tar(tmp_path / "a-0.tar", samples(1))
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "a.tar.gz").touch()
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe.tar")
    assert_refused(f"shards:{tmp_path}/none", "no pictures", ".png")
    assert_refused(f"shards:{tmp_path}/a-{{0..2}}.tar", "there is no shard", f"{tmp_path}/a-1.tar")
    assert_refused(f"shards:{tmp_path}/b-*.tar", "there is no shard", f"{tmp_path}/b-*.tar")
    assert_refused(f"shards:{tmp_path}/packed", "'a.tar.gz'", "unpack")
    assert_refused(f"shards:{tmp_path}/empty", "no shards in", "*.tar")
    assert_refused(f"shards:{tmp_path}/pipe.tar", "not a regular file")
    assert_refused("shards:pipe:cat x.tar", "'pipe:cat x.tar'", "copy")
    assert_refused("shards:https://example.org/a-{0..9}.tar", "copy")
    assert_refused(f"shards:{tmp_path}/a-{{0..99999999999}}.tar", str(MOST_FILES))
    assert_refused("shards:", "'shards:'")


def test_patterns_name_shards_in_their_order_and_each_once(tmp_path):
    for i in (8, 9, 10, 11):
        write_tar(tmp_path / "x" / f"a-{i:03}.tar", samples(i))
    write_tar(tmp_path / "y" / "b-1.tar", samples(1))

    def values(address, root=None):
        return values_of(open_dataset(f"shards:{address}", root))

    x = f"{tmp_path}/x"
    assert values(f"{x}/a-{{009..011}}.tar") == [9, 10, 11]
    assert values(f"{x}/a-{{011..009}}.tar") == [11, 10, 9]
    assert values(f"{x}/a-*.tar") == [8, 9, 10, 11]
    assert values(f"{x}/a-{{011,008}}.tar::{tmp_path}/y::{x}/a-0?1.tar") == [11, 8, 1]
    assert values("x/a-*0.tar::y", str(tmp_path)) == [10, 1]
    names = open_dataset(f"shards:{x}/a-010.tar::{tmp_path}/y").names
    assert names == ["x/a-010.tar/0010.png", "y/b-1.tar/0001.png"]
    write_tar(tmp_path / "z" / "{1..2}.tar", samples(3))
    assert values(f"{tmp_path}/z/{{1..2}}.tar") == [3]


@pytest.mark.parametrize(
    ("pattern", "paths"),
    [
        ("a", ["a"]),
        ("{8..10}", ["8", "9", "10"]),
        ("{08..10}", ["08", "09", "10"]),
        ("{a,b}-{0..1}x", ["a-0x", "a-1x", "b-0x", "b-1x"]),
        ("{3..3}{only}{}", ["3{only}{}"]),
    ],
)
def test_braces_are_expanded_as_a_shell_does(pattern, paths):
    assert expand(pattern, "shard") == paths


def test_an_address_with_a_pattern_opens_the_same_from_elsewhere(tmp_path, monkeypatch):
    write_tar(tmp_path / "a-0.tar", samples(1))
    write_tar(tmp_path / "a-1.tar", samples(2))
    monkeypatch.chdir(tmp_path)
    dataset = open_dataset("shards:a-{0..1}.tar::a-0.tar")
    monkeypatch.chdir("/")
    assert dataset.uri == f"shards:{tmp_path}/a-{{0..1}}.tar::{tmp_path}/a-0.tar"
    assert open_dataset(dataset.uri).digest == dataset.digest


def test_names_of_shards_give_the_test_part_as_names_of_folders_do(tmp_path):
    def test_values(*names):
        folder = tmp_path / "-".join(names).replace("/", "-")
        for i, name in enumerate(names):
            write_tar(folder / f"{name}.tar", samples(10 * i, 10 * i + 1))
        dataset = open_dataset("shards:" + "::".join(f"{folder}/{name}.tar" for name in names))
        return None if dataset.test is None else [values_of(dataset)[i] for i in dataset.test]

    assert test_values("train-0", "train-1", "Test_0", "val-0") == [20, 21]
    assert test_values("train-0", "val1", "val2") == [10, 11, 20, 21]
    assert test_values("train-0", "train-1") is None
    assert test_values("train-0", "birds-0") is None
    assert test_values("birds-train-0", "birds-train-1", "birds-val-0") == [20, 21]
    assert test_values("train/0", "train/1", "test/0") == [20, 21]
    assert test_values("val-0", "test-1") is None
    assert test_values("0", "1") is None


def test_shards_beside_those_of_the_parts_are_left_out_and_named(tmp_path):
    for i, name in enumerate(("train-0", "test-0", "spare-0", "unlabeled-0")):
        write_tar(tmp_path / f"{name}.tar", samples(i))
    dataset = open_dataset(f"shards:{tmp_path}")
    assert values_of(dataset) == [1, 0]
    (entry,) = dataset.left_out
    assert (entry.what, entry.count) == ("shards", 2)
    assert entry.examples == ("spare-0.tar", "unlabeled-0.tar")


def test_the_digest_tells_of_names_labels_sizes_and_not_of_the_place(tmp_path):
    def digest(folder, *members, shard="a.tar"):
        write_tar(tmp_path / folder / shard, members)
        return open_dataset(f"shards:{tmp_path / folder}").digest

    a, b = ("1.png", png(1)), ("1.cls", b"5")
    known = digest("one", a, b)
    assert digest("two", a, b) == known
    others = [digest("3", ("2.png", png(1)), ("2.cls", b"5")), digest("4", a, ("1.cls", b"6")), digest("5", a)]
    others += [
        digest("6", ("1.png", png(1) + b"x"), b),
        digest("7", a, b, shard="b.tar"),
        digest("8", a, b, *samples(1)),
    ]
    assert len({known, *others}) == 7


def count_headers(monkeypatch):
    gone_through = []
    real = shards_module._scan
    monkeypatch.setattr(shards_module, "_scan", lambda file, *more: gone_through.append(file) or real(file, *more))
    return gone_through


def test_a_shard_is_gone_through_once_until_it_changes(tmp_path, monkeypatch):
    gone_through = count_headers(monkeypatch)
    file = write_tar(tmp_path / "a.tar", samples(1, 2))
    first, again = open_dataset(f"shards:{file}"), open_dataset(f"shards:{tmp_path}")
    assert gone_through == [file]
    assert (again.digest, again.names, again.classes) == (first.digest, first.names, first.classes)
    assert values_of(again) == [1, 2]
    os.utime(file, ns=(0, 0))
    open_dataset(f"shards:{file}")
    write_tar(file, samples(*range(20)))
    os.utime(file, ns=(0, 0))
    assert len(open_dataset(f"shards:{file}")) == 20
    assert len(gone_through) == 3


def test_a_damaged_cache_is_not_trusted(tmp_path, monkeypatch, cache):
    gone_through = count_headers(monkeypatch)
    file = write_tar(tmp_path / "a.tar", samples(1, 2))
    open_dataset(f"shards:{file}")
    (kept,) = (cache / "shards").iterdir()
    content = kept.read_bytes()
    bad = [b"", content[:-50], content[:50], b"\x80\x04K\x05."]
    for damaged in bad:
        kept.write_bytes(damaged)
        assert values_of(open_dataset(f"shards:{file}")) == [1, 2]
        assert kept.read_bytes() == content
    assert len(gone_through) == 1 + len(bad)


def test_without_a_cache_that_can_be_written_shards_are_read_all_the_same(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("HPT_CACHE", str(tmp_path / "file"))
    write_tar(tmp_path / "a.tar", samples(1))
    assert values_of(open_dataset(f"shards:{tmp_path}/a.tar")) == [1]


def test_a_shard_that_changes_afterwards_is_unreadable_and_not_misread(tmp_path):
    file = write_tar(tmp_path / "a.tar", samples(1, 2))
    pictures = open_dataset(f"shards:{file}").pictures
    write_tar(file, samples(3, 4, 5, 6, 7, 8, 9, 10, 11, 12))
    with pytest.raises(UnreadableImageError, match="changed"):
        pictures[0]
    file.unlink()
    with pytest.raises(UnreadableImageError, match="No such file"):
        pictures[0]


def test_a_picture_has_the_content_of_the_same_picture_in_a_file(tmp_path):
    rng = np.random.default_rng(0)
    contents = [rng.bytes(size) for size in (0, 1, 4096, 4097, 8192, 8193, 30_000)]
    for i, content in enumerate(contents):
        (tmp_path / "files").mkdir(exist_ok=True)
        (tmp_path / "files" / f"{i}.png").write_bytes(content)
    write_tar(tmp_path / "a.tar", [(f"other{i}.png", content) for i, content in enumerate(contents)])
    files, packed = open_dataset(f"{tmp_path}/files"), open_dataset(f"shards:{tmp_path}/a.tar")
    found = packed.contents.of(np.arange(7))
    np.testing.assert_array_equal(found, files.contents.of(np.arange(7)))
    assert len(set(found.tolist())) == 7
