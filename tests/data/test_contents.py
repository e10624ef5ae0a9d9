import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from picture_files import chunk
from PIL import Image

from hpt_mlflow.data import contents as contents_module
from hpt_mlflow.data.contents import UNKNOWN, Contents
from hpt_mlflow.data.errors import UnreadableImageError
from hpt_mlflow.data.file_rows import Files, FramedFiles, StackedFiles
from hpt_mlflow.data.names import Names


def contents_of(dataset_of, pictures):
    found = dataset_of(pictures).contents.of(np.arange(len(pictures)))
    assert found.dtype == np.int64
    return found.tolist()


def noise(seed, shape=(40, 50, 3)):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write(path, seed, shape=(40, 50, 3)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(seed, shape)).save(path)
    return path


def test_each_image_has_its_own_in_the_order_that_was_asked_for(dataset_of, plain_files):
    files = plain_files(30)
    known = contents_of(dataset_of, files)
    assert len(set(known)) == 30
    assert UNKNOWN not in known
    order = np.random.default_rng(0).permutation(30)[:12]
    assert dataset_of(files).contents.of(order).tolist() == [known[i] for i in order]


def test_a_renamed_copy_in_another_format_of_address_is_the_same(dataset_of, tmp_path):
    file = write(tmp_path / "cats" / "1.png", 0)
    copy = tmp_path / "elsewhere" / "9.dat"
    copy.parent.mkdir()
    shutil.copyfile(file, copy)
    os.symlink(file, tmp_path / "link.png")
    one, other, linked = contents_of(dataset_of, [file, copy, tmp_path / "link.png"])
    assert one == other == linked != UNKNOWN


@pytest.mark.parametrize("place", [0, 4095, 5000, 1 << 20, -4097, -1])
def test_another_byte_anywhere_makes_another(dataset_of, tmp_path, place):
    content = bytearray(np.random.default_rng(0).bytes((1 << 20) + 10_000))
    (tmp_path / "a").write_bytes(content)
    content[place] ^= 1
    (tmp_path / "b").write_bytes(content)
    one, other = contents_of(dataset_of, [tmp_path / "a", tmp_path / "b"])
    assert one != other


def test_a_file_too_large_to_be_decoded_is_not_read(dataset_of, tmp_path):
    with open(tmp_path / "huge", "wb") as file:
        file.truncate(1 << 40)  # a terabyte, of which the disk keeps nothing
    assert contents_of(dataset_of, [tmp_path / "huge"]) == [UNKNOWN]


def test_what_cannot_be_read_is_unknown_and_the_others_are_known(dataset_of, tmp_path, plain_files):
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    bad = [tmp_path / "nowhere.png", tmp_path / "folder", tmp_path / "loop", tmp_path / "null\0byte"]
    good = plain_files(3)
    assert contents_of(dataset_of, [good[0], *bad, *good[1:]]) == [
        contents_of(dataset_of, good)[0],
        *[UNKNOWN] * 4,
        *contents_of(dataset_of, good)[1:],
    ]


def test_a_pipe_is_not_waited_for(dataset_of, tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    found = []
    asking = threading.Thread(
        target=lambda: found.extend(contents_of(dataset_of, [tmp_path / "pipe.png"])), daemon=True
    )
    asking.start()
    asking.join(5)
    in_time = found.copy()
    # Whoever waits for a writer nevertheless is let go.
    os.close(os.open(tmp_path / "pipe.png", os.O_RDWR))
    asking.join(5)
    assert in_time == [UNKNOWN]


def test_of_arrays_pixels_shape_and_type_count(dataset_of):
    pixels = noise(0, (4, 6))
    changed = pixels.copy()
    changed[2, 3] ^= 1
    turned = pixels.reshape(6, 4)
    one, same, *others = contents_of(
        dataset_of, [pixels, pixels.copy(), changed, turned, pixels.astype(np.uint16), pixels[..., None]]
    )
    assert one == same
    assert len({one, *others}) == 5


def test_how_an_array_lies_in_memory_does_not_count(dataset_of):
    pixels = noise(0)
    one, by_column, part = contents_of(
        dataset_of, [pixels, np.asfortranarray(pixels), np.pad(pixels, ((1, 1), (0, 0), (0, 0)))[1:-1]]
    )
    assert one == by_column == part


def test_a_pillow_image_is_what_it_shows(dataset_of):
    pixels = noise(0)
    one, other, as_array = contents_of(dataset_of, [Image.fromarray(pixels), Image.fromarray(noise(1)), pixels])
    assert one == as_array != other


def test_of_bytes_all_count(dataset_of):
    content = bytearray(np.random.default_rng(0).bytes(20_000))
    changed = content.copy()
    changed[8192] ^= 1
    one, same, other = contents_of(dataset_of, [bytes(content), bytes(content), bytes(changed)])
    assert one == same != other


def test_a_pillow_image_whose_data_is_damaged_is_unknown(dataset_of):
    buffer = BytesIO()
    Image.fromarray(noise(0)).save(buffer, "PNG")
    whole = buffer.getvalue()
    header, _, rest = whole.partition(whole[whole.index(b"IDAT") - 4 :][:8])
    pixels = rest[: -len(chunk(b"IEND", b"")) - 4]
    damaged = [
        whole[:-3000],
        # Pillow raises SyntaxError when it comes to the odd chunk, which is not before the pixels are asked for.
        header + chunk(b"IDAT", pixels[:1000]) + chunk(b"\x01\x02\x03\x04", pixels[1000:]) + chunk(b"IEND", b""),
    ]
    pictures = [Image.open(BytesIO(content)) for content in (*damaged, whole)]
    assert contents_of(dataset_of, pictures) == [UNKNOWN, UNKNOWN, *contents_of(dataset_of, [noise(0)])]


class Failing:
    """Pictures of which some fail only when they are read, as those of torchvision do."""

    def __init__(self, error):
        self.error = error

    def __len__(self):
        return 3

    def __getitem__(self, index):
        if index == 1:
            raise self.error
        return Image.fromarray(noise(index))


@pytest.mark.parametrize(
    "error", [UnreadableImageError("damaged"), OSError("gone"), ValueError("odd"), SyntaxError("broken PNG file")]
)
def test_a_picture_that_fails_when_it_is_read_is_unknown(dataset_of, error):
    dataset = replace(dataset_of([b""] * 3), pictures=Failing(error))
    first, failed, last = dataset.contents.of(np.arange(3)).tolist()
    assert failed == UNKNOWN
    assert len({first, last, UNKNOWN}) == 3


def test_no_images_have_none(dataset_of):
    assert len(contents_of(dataset_of, [])) == 0


@pytest.fixture
def read_files(monkeypatch):
    """The names of files whose bytes are read from now on; times of files count at once, however new they are."""
    monkeypatch.setattr(contents_module, "RACY_NS", -(10**12))
    names, add_file = [], contents_module._add_file
    monkeypatch.setattr(
        contents_module, "_add_file", lambda digest, file: names.append(file.name) or add_file(digest, file)
    )
    return names


def as_files(paths):
    return Files(paths[0].parent, Names.of(path.name for path in paths))


@pytest.mark.parametrize("kind", [list, as_files])
def test_files_are_read_once_as_long_as_they_stay_the_same(plain_files, read_files, kind):
    files = plain_files(5)
    first = Contents(kind(files)).of(np.arange(5)).tolist()
    assert sorted(read_files) == [file.name for file in files]
    read_files.clear()
    assert Contents(kind(files)).of(np.arange(5)).tolist() == first
    assert read_files == []


def test_asked_twice_nothing_is_looked_at_again(plain_files, read_files):
    contents = Contents(plain_files(5))
    some = contents.of(np.array([3, 1]))
    assert contents.of(np.array([1, 3])).tolist() == some[::-1].tolist()
    assert sorted(read_files) == ["001.png", "003.png"]
    contents.of(np.arange(5))
    assert sorted(read_files) == [f"{i:03}.png" for i in range(5)]


def test_another_content_of_the_same_size_and_time_is_found(plain_files, read_files):
    files = plain_files(3)
    files[2].write_bytes(files[1].read_bytes()[:-1] + b"?")
    before = Contents(files).of(np.arange(3))
    status = files[1].stat()
    files[1].write_bytes(files[2].read_bytes())
    os.utime(files[1], ns=(status.st_atime_ns, status.st_mtime_ns))
    read_files.clear()
    after = Contents(files).of(np.arange(3))
    assert after.tolist() == [before[0], before[2], before[2]]
    assert read_files == ["001.png"]


def test_a_file_that_is_younger_than_the_clock_can_tell_is_read_again(plain_files, read_files, monkeypatch):
    monkeypatch.setattr(contents_module, "RACY_NS", 10**12)
    files = plain_files(2)
    Contents(files).of(np.arange(2))
    Contents(files).of(np.arange(2))
    assert sorted(read_files) == ["000.png", "000.png", "001.png", "001.png"]


def test_what_could_not_be_read_is_tried_again(plain_files, read_files):
    files = plain_files(3)
    whole = files[1].read_bytes()
    files[1].unlink()
    assert Contents(files).of(np.arange(3))[1] == UNKNOWN
    files[1].write_bytes(whole)
    assert Contents(files).of(np.arange(3))[1] != UNKNOWN


def test_the_same_names_in_another_folder_are_other_files(tmp_path, read_files):
    for i, folder in enumerate(("one", "two")):
        write(tmp_path / folder / "1.png", i)
    one, two = (Contents(Files(tmp_path / folder, Names.of(["1.png"]))).of(np.array([0])) for folder in ("one", "two"))
    assert one != two


@pytest.mark.parametrize("damage", [b"", b"?" * 100, None])
def test_a_damaged_index_is_made_anew(plain_files, read_files, tmp_path, monkeypatch, damage):
    monkeypatch.setenv("HPT_CACHE", str(tmp_path / "cache"))
    files = plain_files(3)
    known = Contents(files).of(np.arange(3)).tolist()
    (index,) = (tmp_path / "cache" / "contents").iterdir()
    index.write_bytes(index.read_bytes()[:-8] if damage is None else damage)
    read_files.clear()
    assert Contents(files).of(np.arange(3)).tolist() == known
    assert len(read_files) == 3


def test_the_indices_of_old_datasets_make_room(plain_files, read_files, tmp_path, monkeypatch):
    monkeypatch.setenv("HPT_CACHE", str(tmp_path / "cache"))
    files = plain_files(3)
    Contents(files).of(np.arange(3))
    (old,) = (tmp_path / "cache" / "contents").iterdir()
    os.utime(old, (0, 0))
    monkeypatch.setattr(contents_module, "KEPT_BYTES", old.stat().st_size)
    Contents(files[:2]).of(np.arange(2))
    assert not old.exists()


def test_many_threads_may_ask_at_once(plain_files):
    files = plain_files(40)
    known = Contents(files).of(np.arange(40))
    shared = Contents(files)
    asked = [np.random.default_rng(i).permutation(40)[:25] for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for indices, found in zip(asked, pool.map(shared.of, asked), strict=True):
            np.testing.assert_array_equal(found, known[indices])


def test_missing_positions_are_those_of_a_set():
    rng = np.random.default_rng(0)
    for _ in range(100):
        asked = rng.integers(0, 50, rng.integers(0, 40))
        known = np.unique(rng.integers(0, 50, rng.integers(0, 60)))
        np.testing.assert_array_equal(contents_module._missing(asked, known), np.setdiff1d(asked, known))


def counting_reads(monkeypatch):
    """The files that are read from now on."""
    read, add = [], contents_module._add_file

    def adding(digest, picture):
        read.append(picture.name)
        add(digest, picture)

    monkeypatch.setattr(contents_module, "_add_file", adding)
    contents_module._whole_file.cache_clear()
    return read


def test_stacks_are_read_once_and_again_when_a_band_changes(dataset_of, tmp_path, monkeypatch):
    names = [(f"{i}_red.png", f"{i}_blue.png") for i in range(3)]
    for seed, name in enumerate(name for row in names for name in row):
        os.utime(write(tmp_path / name, seed), (0, 0))
    monkeypatch.setattr(contents_module, "RACY_NS", -(10**12))
    read = counting_reads(monkeypatch)
    first = contents_of(dataset_of, StackedFiles(tmp_path, names))
    assert (len(set(first)), len(read)) == (3, 6)
    contents_module._whole_file.cache_clear()
    assert contents_of(dataset_of, StackedFiles(tmp_path, names)) == first
    assert len(read) == 6
    os.utime(write(tmp_path / "1_blue.png", 9), (0, 0))
    contents_module._whole_file.cache_clear()
    changed = contents_of(dataset_of, StackedFiles(tmp_path, names))
    assert [one == other for one, other in zip(first, changed, strict=True)] == [True, False, True]
    assert sorted(read[6:]) == ["1_blue.png", "1_red.png"]


def test_other_bands_and_other_images_of_a_file_are_others(dataset_of, tmp_path, monkeypatch):
    monkeypatch.setattr(contents_module, "RACY_NS", -(10**12))
    for seed, name in enumerate(("a.png", "b.png", "c.png", "d.png")):
        os.utime(write(tmp_path / name, seed), (0, 0))
    rows = [("a.png", "b.png"), ("c.png", "d.png")]
    others = [("a.png", "c.png"), ("b.png", "d.png")]
    assert contents_of(dataset_of, StackedFiles(tmp_path, rows)) != contents_of(
        dataset_of, StackedFiles(tmp_path, others)
    )
    of_first, of_second = (FramedFiles(tmp_path, Names.of(["a.png"]), np.array([i])) for i in (0, 1))
    assert contents_of(dataset_of, of_first) != contents_of(dataset_of, of_second)
