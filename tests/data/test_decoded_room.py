"""How much of the disk decoded images take, and what becomes of those that do not fit."""

import os
import resource
import shutil
from collections import namedtuple

import numpy as np
import pytest

from hpt_mlflow.data import images as images_module
from hpt_mlflow.data.images import Images

COUNT = 20
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def files(write_image, tmp_path):
    """Plainly grey images of their number's value, each larger than the one before: 19 KB together."""
    return [write_image(tmp_path / f"{i:02}.png", (30 - i, 5 + i), (i, i, i)) for i in range(COUNT)]


@pytest.fixture
def opened(dataset_of, files):
    """Open the files with a cache of 1 GiB."""

    def build(indices=range(COUNT), cache_gib=1.0, **more):
        return Images(dataset_of(files), np.array(indices), 64, cache_gib=cache_gib, **more)

    return build


def assert_all_there(images):
    assert images.indices.tolist() == list(range(COUNT))
    assert [images[i].shape for i in range(COUNT)] == [(5 + i, 30 - i, 3) for i in range(COUNT)]
    assert [int(images[i][0, 0, 0]) for i in range(COUNT)] == list(range(COUNT))
    assert [int(image[0, 0, 0]) for image in images.sample] == list(range(COUNT))


def test_a_disk_that_is_full_is_no_error(opened, kept):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        images = opened()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_all_there(images)
    assert kept() == []


@pytest.mark.parametrize(
    ("total", "free", "fits"),
    [(1 << 40, 1 << 30, False), (1 << 40, 2 << 30, True), (1 << 20, 60_000, False), (1 << 20, 100_000, True)],
)
def test_some_of_the_disk_is_left_to_others(opened, kept, monkeypatch, total, free, fits):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(total, total - free, free))
    assert_all_there(opened())
    assert len(kept()) == fits


def test_what_was_used_longest_ago_makes_room(opened, folder):
    gib = 2.5 * opened(indices=range(10)).sample._pixels.nbytes / 2**30
    (first,) = folder.glob("*.images")
    opened(indices=range(1, 11), cache_gib=gib)
    (second,) = set(folder.glob("*.images")) - {first}
    os.utime(first, (1, 1))
    os.utime(second, (2, 2))
    mapped = opened(indices=range(1, 11), cache_gib=gib), opened(indices=range(10), cache_gib=gib)
    os.utime(second, (3, 3))
    opened(indices=range(2, 12), cache_gib=gib)
    assert first.exists()
    assert not second.exists()
    assert len(list(folder.glob("*.images"))) == 2
    assert mapped[0][1].shape == (6, 29, 3)


def test_what_does_not_fit_is_kept_in_memory(opened, kept):
    assert_all_there(opened(cache_gib=1e-6))
    assert kept() == []


def test_what_fits_nowhere_is_decoded_when_it_is_needed(opened, kept):
    images = opened(cache_gib=1e-6, memory_limit_bytes=0)
    assert not images.in_memory
    assert kept() == []
    assert_all_there(images)


def test_others_make_room_also_for_what_is_larger_than_expected(opened, folder, monkeypatch):
    monkeypatch.setattr(images_module, "SIZE_SAMPLE", 1)
    opened(indices=range(10, 20))  # 12 KB
    opened(cache_gib=25_000 / 2**30)  # 22 KB, where 9 KB are expected
    assert sum(file.stat().st_size for file in folder.glob("*.images")) < 25_000


def test_the_room_of_what_goes_is_used_on_a_small_disk(opened, folder, kept, monkeypatch):
    def usage(path):
        used = sum(file.stat().st_size for file in folder.glob("*"))
        return Usage(24_000, used, 24_000 - used)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    opened(indices=range(10), cache_gib=20_000 / 2**30)
    before = kept()
    assert len(before) == 1
    images = opened(indices=range(1, 20), cache_gib=20_000 / 2**30)
    assert images[19].shape == (24, 11, 3)
    assert len(kept()) == 1
    assert kept() != before
