import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image

from hpt_mlflow.data import decoded as decoded_module
from hpt_mlflow.data import packed as packed_module
from hpt_mlflow.data.errors import UnreadableImageError
from hpt_mlflow.data.images import Images
from hpt_mlflow.errors import HptError

COUNT = 20


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (5 + i, 30 - i, 3), dtype=np.uint8) for i in range(COUNT)]


@pytest.fixture
def files(arrays, tmp_path):
    paths = [tmp_path / f"{i:02}.png" for i in range(COUNT)]
    for path, array in zip(paths, arrays, strict=True):
        Image.fromarray(array).save(path)
    return paths


@pytest.fixture
def opened(dataset_of, files):
    """Open the files with a cache of 1 GiB."""

    def build(indices=None, side=64, cache_gib=1.0, pictures=None, **more):
        indices = np.arange(COUNT) if indices is None else np.array(indices)
        return Images(dataset_of(files if pictures is None else pictures), indices, side, cache_gib=cache_gib, **more)

    return build


def spoil(files):
    """Put something else in the place of files, so that nothing shows it but their content."""
    for file in files:
        status = file.stat()
        file.write_bytes(b"?" * status.st_size)
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def assert_all_there(images, arrays):
    assert images.indices.tolist() == list(range(len(arrays)))
    for i, array in enumerate(arrays):
        np.testing.assert_array_equal(images[i], array)
        np.testing.assert_array_equal(images.sample[i], array)


def test_the_first_opening_writes_one_file_and_gives_the_images(opened, arrays, kept):
    images = opened()
    assert_all_there(images, arrays)
    assert images.in_memory
    assert [Path(name).suffix for name in kept()] == [".images"]


def test_the_second_opening_decodes_nothing(opened, arrays, no_decoding):
    opened()
    no_decoding()
    assert_all_there(opened(), arrays)


def test_a_file_that_is_replaced_with_its_size_and_time_is_decoded(opened, files):
    opened()
    spoil(files[7:8])
    with pytest.raises(HptError, match=r"1 of 20 .*07\.png"):
        opened()


def test_without_a_cache_no_file_is_written_and_none_read(opened, files, arrays, folder):
    assert_all_there(opened(cache_gib=0), arrays)
    assert not folder.exists()
    opened()
    spoil(files)
    with pytest.raises(HptError, match="20 of 20"):
        opened(cache_gib=0)


def test_pictures_that_need_no_decoding_are_not_written(opened, arrays, folder):
    assert_all_there(opened(pictures=arrays), arrays)
    assert_all_there(opened(pictures=[Image.fromarray(array) for array in arrays]), arrays)
    assert not folder.exists()


def test_encoded_bytes_are_known_by_their_content(opened, files, arrays, kept, no_decoding):
    pictures = [file.read_bytes() for file in files]
    opened(pictures=pictures)
    other = [*pictures[:-1], pictures[0]]
    np.testing.assert_array_equal(opened(pictures=other)[COUNT - 1], arrays[0])
    assert len(kept()) == 2
    no_decoding()
    assert_all_there(opened(pictures=pictures), arrays)


def test_another_size_selection_or_version_is_another_file(opened, kept, monkeypatch):
    opened()
    opened(side=8)
    opened(indices=range(10))
    opened(indices=range(10, 20))
    monkeypatch.setattr(PIL, "__version__", "0.0.1")
    opened()
    monkeypatch.setattr(decoded_module, "MAGIC", b"hptimg99")
    opened()
    assert len(kept()) == 6
    assert min(opened(side=8)[19].shape[:2]) == 8


def test_a_selection_counts_beyond_the_files_that_are_looked_at(opened, kept, arrays, monkeypatch):
    monkeypatch.setattr(decoded_module, "LOOKED_AT", 2)
    opened(indices=[0, 5, 19])
    np.testing.assert_array_equal(opened(indices=[0, 7, 19])[7], arrays[7])
    assert len(kept()) == 2


def test_the_same_images_of_other_names_and_labels_share_the_file(opened, files, arrays, kept, dataset_of, no_decoding):
    opened()
    renamed = [file.rename(file.with_name(f"renamed {file.name}")) for file in files]
    no_decoding()
    assert_all_there(Images(dataset_of(renamed, np.arange(COUNT) % 2), np.arange(COUNT), 64, cache_gib=1), arrays)
    assert len(kept()) == 1


def test_the_order_that_indices_are_asked_in_makes_no_other_file(opened, arrays, kept, no_decoding):
    opened(indices=[4, 0, 2])
    no_decoding()
    images = opened(indices=[2, 4, 0])
    assert images.indices.tolist() == [2, 4, 0]
    assert len(kept()) == 1
    for i in (0, 2, 4):
        np.testing.assert_array_equal(images[i], arrays[i])


DAMAGES = {
    "cut off": lambda content: content[:-1],
    "longer": lambda content: content + b"?",
    "a wrong table": lambda content: (
        content[: content.index(b'{"key"') - 3] + b"\x77" + content[content.index(b'{"key"') - 2 :]
    ),
    "a wrong header": lambda content: content.replace(b'"unreadable": {}', b'"unreadable": []'),
    "of another version": lambda content: content.replace(packed_module.MAGIC, b"hptimg99"),
    "foreign": lambda content: b"?" * len(content),
    "short": lambda content: b"hptimg01",
    "empty": lambda content: b"",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_written_again(opened, files, arrays, folder, kept, damage):
    opened()
    (file,) = folder.glob("*.images")
    whole = file.read_bytes()
    file.write_bytes(DAMAGES[damage](whole))
    assert file.read_bytes() != whole
    assert_all_there(opened(), arrays)
    assert file.read_bytes() == whole
    assert kept() == [file.name]


def test_the_file_of_other_images_is_not_taken_for_these(opened, arrays, folder):
    opened()
    (file,) = folder.glob("*.images")
    opened(indices=range(10))
    (other,) = set(folder.glob("*.images")) - {file}
    shutil.copy(other, file)
    assert_all_there(opened(), arrays)


def test_a_cache_that_cannot_be_written_is_no_error(opened, arrays, tmp_path, monkeypatch):
    (tmp_path / "in the way").write_text("")
    monkeypatch.setenv("HPT_CACHE", str(tmp_path / "in the way"))
    assert_all_there(opened(), arrays)


def test_unreadable_images_are_remembered(dataset_of, plain_files, no_decoding):
    files = plain_files(200)
    files[3].write_bytes(b"no picture")
    first = Images(dataset_of(files), np.arange(200), 8, cache_gib=1)
    no_decoding()
    again = Images(dataset_of(files), np.arange(200), 8, cache_gib=1)
    assert again.unreadable == first.unreadable
    assert set(again.unreadable) == {3}
    assert 3 not in again.indices
    assert again[4][0, 0].tolist() == [4, 4, 4]
    with pytest.raises(UnreadableImageError, match="UnidentifiedImageError"):
        again[3]
    with pytest.raises(HptError, match="--strict"):
        Images(dataset_of(files), np.arange(200), 8, strict=True, cache_gib=1)


@pytest.mark.parametrize("limits", [(1, None), (1e-7, 0)])
def test_a_file_that_could_not_be_read_is_tried_again(dataset_of, plain_files, monkeypatch, limits):
    monkeypatch.setattr(decoded_module, "LOOKED_AT", 2)
    files = plain_files(200)
    files[3].rename(files[3].with_suffix(".away"))
    cache_gib, memory_limit = limits
    assert 3 in Images(dataset_of(files), np.arange(200), 8, False, memory_limit, cache_gib).unreadable
    assert 3 in Images(dataset_of(files), np.arange(200), 8, False, memory_limit, cache_gib).unreadable
    files[3].with_suffix(".away").rename(files[3])
    images = Images(dataset_of(files), np.arange(200), 8, False, memory_limit, cache_gib)
    assert images.unreadable == {}
    assert images[3][0, 0].tolist() == [3, 3, 3]


def test_only_the_address_of_the_file_is_sent_to_another_process(opened, arrays):
    images = opened()
    sent = pickle.dumps(images)
    assert images[10].tobytes() not in sent
    assert len(sent) < sum(array.nbytes for array in arrays) / 2
    assert_all_there(pickle.loads(sent), arrays)  # noqa: S301


def test_a_process_that_finds_the_file_no_more_decodes(opened, arrays, folder):
    images = opened()
    sent = pickle.dumps(images)
    (file,) = folder.glob("*.images")
    file.unlink()
    arrived = pickle.loads(sent)  # noqa: S301
    assert not arrived.in_memory
    assert_all_there(arrived, arrays)
    assert_all_there(images, arrays)
