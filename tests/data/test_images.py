import pickle
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from hpt_mlflow.data import images as images_module
from hpt_mlflow.data.errors import UnreadableImageError
from hpt_mlflow.data.images import Images
from hpt_mlflow.errors import HptError


@pytest.fixture
def arrays():
    """Images of different sizes, some larger than the side they are kept at."""
    rng = np.random.default_rng(0)
    sizes = [(5, 7), (20, 30), (1, 1), (9, 4), (30, 12)]
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


@pytest.fixture
def files_with_damage(plain_files):
    """200 files, of which those asked for are damaged."""

    def write(*damaged):
        files = plain_files(200)
        for i in damaged:
            files[i].write_bytes(b"no picture")
        return files

    return write


def test_images_are_the_same_in_memory_or_not(dataset_of, arrays):
    dataset = dataset_of(arrays)
    kept = Images(dataset, np.arange(5), smallest_side=8)
    again = Images(dataset, np.arange(5), smallest_side=8, memory_limit_bytes=0)
    assert kept.in_memory
    assert not again.in_memory
    for i in range(5):
        np.testing.assert_array_equal(kept[i], again[i])
    np.testing.assert_array_equal(kept.indices, again.indices)


def test_images_are_reduced_to_their_smallest_side(dataset_of, arrays):
    images = Images(dataset_of(arrays), np.arange(5), smallest_side=8)
    assert [images[i].shape for i in range(5)] == [(5, 7, 3), (8, 12, 3), (1, 1, 3), (9, 4, 3), (20, 8, 3)]


@pytest.mark.parametrize("limit", [1 << 20, 0])
def test_only_the_images_asked_for_are_there(dataset_of, arrays, limit):
    images = Images(dataset_of(arrays), np.array([4, 0, 2]), smallest_side=100, memory_limit_bytes=limit)
    assert sorted(images.indices) == [0, 2, 4]
    assert len(images.sample) == 3
    for i in (0, 2, 4):
        np.testing.assert_array_equal(images[i], arrays[i])


def test_the_sample_is_all_images_in_the_order_of_their_indices(dataset_of, arrays):
    for limit in (1 << 20, 0):
        sample = Images(dataset_of(arrays), np.arange(5), smallest_side=100, memory_limit_bytes=limit).sample
        assert len(sample) == 5
        for image, expected in zip(sample, arrays, strict=True):
            np.testing.assert_array_equal(image, expected)


def test_more_images_than_a_sample_are_all_kept(dataset_of):
    values = np.arange(2500) % 251
    dataset = dataset_of([np.full((1, 1, 3), value, np.uint8) for value in values])
    images = Images(dataset, np.arange(2500), smallest_side=4)
    assert images.in_memory
    assert [int(images[i][0, 0, 0]) for i in range(2500)] == values.tolist()
    assert len(images.sample) == 2500


def test_more_images_than_fit_are_known_by_an_even_sample(dataset_of):
    values = np.linspace(0, 255, 2500).astype(np.uint8)
    dataset = dataset_of([np.full((1, 1, 3), value, np.uint8) for value in values])
    images = Images(dataset, np.arange(2500), smallest_side=4, memory_limit_bytes=2500 * 3 - 1)
    assert not images.in_memory
    assert len(images.sample) == 2048
    assert len(images.indices) == 2500
    assert np.mean([image.mean() for image in images.sample]) == pytest.approx(127, abs=1)
    assert int(images[2499][0, 0, 0]) == 255


def test_images_that_just_fit_are_kept(dataset_of):
    dataset = dataset_of([np.zeros((2, 2, 3), np.uint8)] * 10)
    assert Images(dataset, np.arange(10), smallest_side=4, memory_limit_bytes=120).in_memory
    assert not Images(dataset, np.arange(10), smallest_side=4, memory_limit_bytes=119).in_memory


@pytest.mark.parametrize("limit", [1 << 20, 0])
def test_unreadable_images_are_skipped_and_named(dataset_of, files_with_damage, limit):
    dataset = dataset_of(files_with_damage(3, 150))
    images = Images(dataset, np.arange(200), smallest_side=8, memory_limit_bytes=limit)
    assert set(images.unreadable) == {3, 150}
    assert all("UnidentifiedImageError" in reason for reason in images.unreadable.values())
    assert images.indices.tolist() == [i for i in range(200) if i not in {3, 150}]
    assert images[4][0, 0].tolist() == [4, 4, 4]
    assert images[199][0, 0].tolist() == [199, 199, 199]
    assert len(images.sample) == 198
    with pytest.raises(UnreadableImageError, match="UnidentifiedImageError"):
        images[3]


def test_more_than_one_percent_unreadable_is_refused(dataset_of, files_with_damage):
    dataset = dataset_of(files_with_damage(3, 50, 150))
    with pytest.raises(HptError, match=r"3 of 200 images of some are unreadable .*'003\.png'") as caught:
        Images(dataset, np.arange(200), smallest_side=8)
    assert "\n" not in str(caught.value)


def test_strict_refuses_a_single_unreadable_image(dataset_of, files_with_damage):
    dataset = dataset_of(files_with_damage(150))
    Images(dataset, np.arange(200), smallest_side=8)
    with pytest.raises(HptError, match=r"1 of 200 .*--strict.*'150\.png'"):
        Images(dataset, np.arange(200), smallest_side=8, strict=True)


def test_nothing_but_unreadable_images_is_refused(dataset_of):
    with pytest.raises(HptError, match="3 of 3"):
        Images(dataset_of([b"no", b"picture", b"here"]), np.arange(3), smallest_side=8)


def test_images_found_unreadable_later_are_noted_until_they_are_too_many(dataset_of):
    images = Images(dataset_of([np.zeros((1, 1, 3), np.uint8)] * 200), np.arange(200), smallest_side=4)
    images.report_unreadable([(5, "gone"), (6, "gone")])
    images.report_unreadable([(5, "gone")])
    assert images.unreadable == {5: "gone", 6: "gone"}
    with pytest.raises(HptError, match=r"3 of 200 .*gone"):
        images.report_unreadable([(7, "gone")])


def test_an_image_found_unreadable_later_ends_a_strict_run(dataset_of):
    images = Images(dataset_of([np.zeros((1, 1, 3), np.uint8)] * 200), np.arange(200), smallest_side=4, strict=True)
    images.report_unreadable([])
    with pytest.raises(HptError, match="--strict"):
        images.report_unreadable([(5, "gone")])


@pytest.mark.parametrize("limit", [1 << 20, 0])
def test_images_can_be_sent_to_another_process(dataset_of, arrays, limit):
    images = Images(dataset_of(arrays), np.arange(5), smallest_side=8, memory_limit_bytes=limit)
    sent = pickle.loads(pickle.dumps(images))  # noqa: S301
    for i in range(5):
        np.testing.assert_array_equal(sent[i], images[i])
        np.testing.assert_array_equal(sent.sample[i], images.sample[i])


def test_how_much_is_kept_may_be_said_for_all(dataset_of, arrays, monkeypatch):
    assert Images(dataset_of(arrays), np.arange(5), smallest_side=8).in_memory
    monkeypatch.setattr(images_module, "MEMORY_LIMIT_BYTES", 0)
    assert not Images(dataset_of(arrays), np.arange(5), smallest_side=8).in_memory


def test_a_strip_is_kept_at_a_bounded_size(dataset_of):
    strips = [np.zeros(shape, np.uint8) for shape in ((1, 500_000, 3), (500_000, 1, 3), (4, 500_000, 3))]
    images = Images(dataset_of(strips), np.arange(3), smallest_side=8)
    assert max(image.nbytes for image in images.sample) <= 64 * 8 * 8 * 3


def test_a_file_that_vanishes_is_read_no_more_once_it_is_reported(dataset_of, plain_files):
    files = plain_files(200)
    images = Images(dataset_of(files), np.arange(200), smallest_side=8, memory_limit_bytes=0)
    whole = files[7].read_bytes()
    files[7].unlink()
    with pytest.raises(UnreadableImageError, match="FileNotFoundError") as caught:
        images[7]
    images.report_unreadable([(7, str(caught.value))])
    files[7].write_bytes(whole)
    with pytest.raises(UnreadableImageError, match="FileNotFoundError"):
        images[7]


@pytest.mark.parametrize(("cache_gib", "limit"), [(0, None), (0, 0), (1, None)])
def test_images_can_only_be_read_wherever_they_are(dataset_of, plain_files, cache_gib, limit):
    images = Images(dataset_of(plain_files(3)), np.arange(3), 8, memory_limit_bytes=limit, cache_gib=cache_gib)
    assert not images[2].flags.writeable
    assert not images.sample[2].flags.writeable


@pytest.mark.parametrize("cache_gib", [0, 1])
def test_an_index_that_was_not_asked_for_is_an_error_and_not_its_neighbour(dataset_of, plain_files, cache_gib):
    images = Images(dataset_of(plain_files(9)), np.array([4, 0, 2]), 8, cache_gib=cache_gib)
    for i in (1, 3, 5, -1):
        with pytest.raises(KeyError):
            images[i]


@pytest.mark.parametrize("limits", [(0, None), (0, 0), (1, None)])
def test_another_process_has_the_last_word_on_which_are_unreadable(dataset_of, plain_files, limits):
    files = plain_files(300)
    files[5].write_bytes(b"no picture")
    cache_gib, memory_limit = limits
    known = {3: "another could not read it"}
    images = Images(dataset_of(files), np.arange(300), 8, False, memory_limit, cache_gib, known)
    assert images.indices.tolist() == [i for i in range(300) if i != 3]
    with pytest.raises(UnreadableImageError, match="another could not"):
        images[3]
    with pytest.raises(UnreadableImageError, match="UnidentifiedImageError"):
        images[5]
    assert len(images.sample) == 298
    assert known == {3: "another could not read it"}


class Counted(Sequence):
    """Very many pictures, which remember how often they are asked for."""

    def __init__(self, picture, count):
        self.picture, self.count, self.asked = picture, count, 0

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        self.asked += 1
        return self.picture


def test_of_very_many_images_only_a_sample_is_looked_at(dataset_of, plain_files):
    count = 3_000_000
    pictures = Counted(plain_files(1)[0].read_bytes(), count)
    dataset = replace(dataset_of([]), pictures=pictures)
    opened = [Images(dataset, np.arange(count), 64, memory_limit_bytes=0, cache_gib=gib) for gib in (0, 0.1, 0.1)]
    # Twice 64 for the format of the pixels: the dataset is asked by each.
    assert pictures.asked == 3 * (64 + 128 + 2048)
    assert all(len(images.indices) == count and not images.in_memory for images in opened)
    pictures.asked = 0
    Images(dataset, np.arange(count), 64, memory_limit_bytes=0, known_unreadable={5: "gone"})
    assert pictures.asked == 64 + 128
