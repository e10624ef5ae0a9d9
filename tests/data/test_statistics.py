import json

import numpy as np
import pytest

from hpt_mlflow.data.statistics import channel_statistics, kept_channel_statistics


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def noise(n, height=6, width=5, seed=0):
    return list(np.random.default_rng(seed).integers(0, 256, (n, height, width, 3), dtype=np.uint8))


def kept_file(cache):
    (file,) = cache.rglob("*.json")
    return file


def test_statistics_are_those_of_all_pixels():
    images = noise(7)
    images[0][:, :, 0] = 0
    pixels = np.concatenate([image.reshape(-1, 3) for image in images]) / 255
    statistics = channel_statistics(images)
    np.testing.assert_allclose(statistics.mean, pixels.mean(axis=0), atol=2e-6)
    np.testing.assert_allclose(statistics.std, pixels.std(axis=0), atol=2e-6)


def test_each_image_counts_the_same_whatever_its_size():
    large, small = np.full((50, 50, 3), 255, np.uint8), np.zeros((1, 1, 3), np.uint8)
    statistics = channel_statistics([large, small])
    assert statistics.mean == (0.5, 0.5, 0.5)
    assert statistics.std == (0.5, 0.5, 0.5)


def test_a_constant_channel_can_be_divided_by():
    images = noise(3)
    for image in images:
        image[:, :, 1] = 77
    statistics = channel_statistics(images)
    assert statistics.mean[1] == pytest.approx(77 / 255, abs=1e-6)
    assert 0 < statistics.std[1] <= 0.001
    assert statistics.std[0] > 0.1


def test_large_plain_images_have_exact_statistics():
    statistics = channel_statistics([np.full((1000, 1000, 3), 200, np.uint8)])
    assert statistics.mean == pytest.approx((200 / 255,) * 3, abs=2e-6)
    assert max(statistics.std) <= 0.001


def test_statistics_are_kept_under_hpt_cache(cache, open_images):
    images = noise(3)
    statistics = kept_channel_statistics(open_images(images))
    assert statistics == channel_statistics(images)
    file = kept_file(cache)
    assert json.loads(file.read_text()) == {"mean": list(statistics.mean), "std": list(statistics.std)}


def test_kept_statistics_are_used_again(cache, open_images):
    kept_channel_statistics(open_images(noise(3)))
    kept_file(cache).write_text('{"mean": [1, 2, 3], "std": [4, 5, 6]}')
    assert kept_channel_statistics(open_images(noise(3))).std == (4, 5, 6)


def test_other_images_of_the_same_names_and_sizes_have_other_statistics(open_images):
    first, second = noise(3, seed=0), noise(3, seed=1)
    kept_channel_statistics(open_images(first))
    assert kept_channel_statistics(open_images(second)) == channel_statistics(second)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"mean": 1, "std": 2}', b'{"mean": [0.5], "std": []}'])
def test_a_damaged_cache_is_computed_again(cache, open_images, content):
    images = noise(3)
    expected = kept_channel_statistics(open_images(images))
    file = kept_file(cache)
    file.write_bytes(content)
    assert kept_channel_statistics(open_images(images)) == expected
    assert json.loads(file.read_text())["mean"] == list(expected.mean)
