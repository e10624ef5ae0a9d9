import os
import shutil
import struct
import threading
import zlib
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from hpt_mlflow.data.decode import UnreadableImageError
from hpt_mlflow.data.fingerprints import END_BYTES, UNKNOWN, fingerprints


def prints_of(dataset_of, pictures):
    found = fingerprints(dataset_of(pictures), np.arange(len(pictures)))
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
    known = prints_of(dataset_of, files)
    assert len(set(known)) == 30
    assert UNKNOWN not in known
    order = np.random.default_rng(0).permutation(30)[:12]
    assert fingerprints(dataset_of(files), order).tolist() == [known[i] for i in order]


def test_a_renamed_copy_in_another_format_of_address_is_the_same(dataset_of, tmp_path):
    file = write(tmp_path / "cats" / "1.png", 0)
    copy = tmp_path / "elsewhere" / "9.dat"
    copy.parent.mkdir()
    shutil.copyfile(file, copy)
    os.symlink(file, tmp_path / "link.png")
    one, other, linked = prints_of(dataset_of, [file, copy, tmp_path / "link.png"])
    assert one == other == linked != UNKNOWN


@pytest.mark.parametrize("place", [0, END_BYTES - 1, -1, -END_BYTES])
def test_one_other_byte_at_either_end_makes_another(dataset_of, tmp_path, place):
    content = bytearray(np.random.default_rng(0).bytes(5 * END_BYTES))
    (tmp_path / "a").write_bytes(content)
    content[place] ^= 1
    (tmp_path / "b").write_bytes(content)
    one, other = prints_of(dataset_of, [tmp_path / "a", tmp_path / "b"])
    assert one != other


@pytest.mark.parametrize("size", [1, END_BYTES, END_BYTES + 1, 2 * END_BYTES - 1, 2 * END_BYTES])
def test_of_a_small_file_every_byte_counts(dataset_of, tmp_path, size):
    content = np.random.default_rng(0).bytes(size)
    places = sorted({0, size // 2, min(size - 1, END_BYTES), size - 1})
    files = [tmp_path / "same"]
    files[0].write_bytes(content)
    for place in places:
        changed = bytearray(content)
        changed[place] ^= 1
        files.append(tmp_path / str(place))
        files[-1].write_bytes(changed)
    assert len(set(prints_of(dataset_of, files))) == 1 + len(places)


def test_another_size_makes_another(dataset_of, tmp_path):
    ends = bytes(END_BYTES)
    for name, middle in (("a", 10_000), ("b", 10_001)):
        (tmp_path / name).write_bytes(ends + bytes(middle) + ends)
    one, other = prints_of(dataset_of, [tmp_path / "a", tmp_path / "b"])
    assert one != other


def test_of_a_large_file_only_the_ends_are_read(dataset_of, tmp_path):
    with open(tmp_path / "huge", "wb") as file:
        file.truncate(1 << 40)  # a terabyte, of which the disk keeps nothing
    assert prints_of(dataset_of, [tmp_path / "huge"]) != [UNKNOWN]


def test_what_cannot_be_read_is_unknown_and_the_others_are_known(dataset_of, tmp_path, plain_files):
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    bad = [tmp_path / "nowhere.png", tmp_path / "folder", tmp_path / "loop", tmp_path / "null\0byte"]
    good = plain_files(3)
    assert prints_of(dataset_of, [good[0], *bad, *good[1:]]) == [
        prints_of(dataset_of, good)[0],
        *[UNKNOWN] * 4,
        *prints_of(dataset_of, good)[1:],
    ]


def test_a_pipe_is_not_waited_for(dataset_of, tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    found = []
    asking = threading.Thread(target=lambda: found.extend(prints_of(dataset_of, [tmp_path / "pipe.png"])), daemon=True)
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
    one, same, *others = prints_of(
        dataset_of, [pixels, pixels.copy(), changed, turned, pixels.astype(np.uint16), pixels[..., None]]
    )
    assert one == same
    assert len({one, *others}) == 5


def test_how_an_array_lies_in_memory_does_not_count(dataset_of):
    pixels = noise(0)
    one, by_column, part = prints_of(
        dataset_of, [pixels, np.asfortranarray(pixels), np.pad(pixels, ((1, 1), (0, 0), (0, 0)))[1:-1]]
    )
    assert one == by_column == part


def test_a_pillow_image_is_what_it_shows(dataset_of):
    pixels = noise(0)
    one, other, as_array = prints_of(dataset_of, [Image.fromarray(pixels), Image.fromarray(noise(1)), pixels])
    assert one == as_array != other


def test_of_bytes_all_count(dataset_of):
    content = bytearray(np.random.default_rng(0).bytes(5 * END_BYTES))
    changed = content.copy()
    changed[2 * END_BYTES] ^= 1
    one, same, other = prints_of(dataset_of, [bytes(content), bytes(content), bytes(changed)])
    assert one == same != other


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


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
    assert prints_of(dataset_of, pictures) == [UNKNOWN, UNKNOWN, *prints_of(dataset_of, [noise(0)])]


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
    first, failed, last = fingerprints(dataset, np.arange(3)).tolist()
    assert failed == UNKNOWN
    assert len({first, last, UNKNOWN}) == 3


def test_no_images_have_none(dataset_of):
    assert len(prints_of(dataset_of, [])) == 0


def test_of_too_many_images_evenly_spaced_ones_are_looked_at(dataset_of, plain_files, monkeypatch):
    files = plain_files(21)
    known = prints_of(dataset_of, files)
    monkeypatch.setattr("hpt_mlflow.data.fingerprints.MOST", 6)
    monkeypatch.setattr("hpt_mlflow.data.fingerprints.AT_ONCE", 4)
    sampled = [known[i] if i % 4 == 0 else UNKNOWN for i in range(21)]
    assert prints_of(dataset_of, files) == sampled
    assert prints_of(dataset_of, files[:6]) == known[:6]
