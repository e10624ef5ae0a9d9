from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import nn

from hpt_mlflow.data.dataset import Dataset
from hpt_mlflow.data.images import Images
from hpt_mlflow.data.statistics import ChannelStatistics
from hpt_mlflow.errors import HptError
from hpt_mlflow.evaluation.feature_cache import cached_features
from hpt_mlflow.evaluation.features import FeatureReader
from hpt_mlflow.pixels import PixelFormat

STATISTICS = ChannelStatistics((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
CPU = torch.device("cpu")


class Tally(list):
    """What copies of a network share."""

    def __deepcopy__(self, memo):
        return self


class Counting(nn.Module):
    """A small backbone that knows how many images it and its copies have seen."""

    def __init__(self, seed: int = 0, activation: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), activation(), nn.AdaptiveAvgPool2d(1))
        self.tally = Tally()

    def forward(self, batch):
        self.tally.append(len(batch))
        return self.layers(batch)

    @property
    def seen(self):
        return sum(self.tally)


def pictures(count=6, size=24, seed=0):
    return list(np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8))


def ask(arrays, backbone, image_size=16, statistics=STATISTICS, smallest_side=64, indices=None, pixels=None, **more):
    dataset = Dataset("arrays", "test:arrays", arrays, [str(i) for i in range(len(arrays))], None, ())
    indices = np.arange(len(arrays)) if indices is None else np.array(indices)
    images = Images(dataset, indices, smallest_side, pixels=pixels)
    reader = FeatureReader(images, image_size, statistics, CPU, threads=1, **more)
    return reader, cached_features(reader, backbone, dataset.contents.of(images.indices))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HPT_CACHE", str(tmp_path))
    return tmp_path / "features"


def test_they_are_the_features_of_the_backbone(cache):
    arrays, backbone = pictures(), Counting()
    reader, features = ask(arrays, backbone)
    np.testing.assert_array_equal(features, reader.features(backbone, np.arange(6)))


def test_the_second_time_the_backbone_is_not_asked(cache):
    arrays, backbone, again = pictures(), Counting(), Counting()
    _, first = ask(arrays, backbone)
    _, second = ask([array.copy() for array in arrays], again)
    assert (backbone.seen, again.seen) == (6, 0)
    np.testing.assert_array_equal(first, second)
    assert first.dtype == second.dtype == np.float32


def changed_statistics(backbone):
    backbone.layers[1].running_mean += 1e-3
    return backbone


OTHERS = {
    "another seed": {"backbone": lambda: Counting(seed=1)},
    "BatchNorm statistics": {"backbone": lambda: changed_statistics(Counting())},
    "another activation between the same weights": {"backbone": lambda: Counting(activation=nn.Tanh)},
    "margin around the centre": {"resize_to": 18},
    "arithmetic": {"precision": "bfloat16"},
    "size": {"image_size": 12},
    "mean": {"statistics": ChannelStatistics((0.41, 0.5, 0.6), (0.2, 0.25, 0.3))},
    "deviation": {"statistics": ChannelStatistics((0.4, 0.5, 0.6), (0.2, 0.25, 0.31))},
    "one other image": {"arrays": [*pictures()[:5], pictures(seed=1)[0]]},
    "another order": {"arrays": pictures()[::-1]},
    "other images of them": {"indices": [0, 1, 2, 3, 5]},
    "images that were reduced before": {"smallest_side": 16},
    "bands in another order": {"pixels": PixelFormat(bands=(3, 2, 1))},
}


@pytest.mark.parametrize("other", OTHERS)
def test_what_differs_is_computed_anew(cache, other):
    settings = {"arrays": pictures(), "backbone": Counting, **OTHERS[other]}
    ask(pictures(), Counting())
    backbone = settings.pop("backbone")()
    reader, features = ask(backbone=backbone, **settings)
    assert backbone.seen == len(reader.images.indices)
    np.testing.assert_array_equal(features, reader.features(backbone, reader.images.indices))


@pytest.mark.parametrize("damage", ["half", "empty", "rows"])
def test_a_damaged_file_is_computed_anew_and_mended(cache, damage):
    arrays, backbone = pictures(), Counting()
    _, features = ask(arrays, backbone)
    (file,) = cache.iterdir()
    if damage == "rows":
        ask(arrays[:3], Counting())
        (fewer,) = set(cache.iterdir()) - {file}
        fewer.replace(file)
    else:
        file.write_bytes(file.read_bytes()[: 100 if damage == "half" else 0])
    again = Counting()
    np.testing.assert_array_equal(ask(arrays, again)[1], features)
    assert again.seen == 6
    np.testing.assert_array_equal(load_file(file)["features"], features)


def test_features_of_images_that_vanished_on_the_way_are_not_kept(cache):
    class Vanishing(list):
        gone = False

        def __getitem__(self, index):
            return np.zeros((0, 0, 3), np.uint8) if self.gone and index == 7 else super().__getitem__(index)

    arrays = Vanishing(pictures(count=150, size=16))
    dataset = Dataset("arrays", "test:arrays", arrays, [str(i) for i in range(150)], None, ())
    images = Images(dataset, np.arange(150), 16, memory_limit_bytes=0)
    reader, content = FeatureReader(images, 16, STATISTICS, CPU, threads=1), dataset.contents.of(np.arange(150))
    arrays.gone = True
    assert not cached_features(reader, Counting(), content)[7].any()
    assert list(images.unreadable) == [7]
    assert not cache.exists() or not list(cache.iterdir())


def test_what_was_used_longest_ago_makes_room(cache, monkeypatch):
    for seed in (0, 1):
        ask(pictures(), Counting(seed))
    # Times of files are those of the clock's last tick, which may be the same for all of them.
    for file in cache.iterdir():
        os.utime(file, (1, 1))
    size = max(file.stat().st_size for file in cache.iterdir())
    ask(pictures(), Counting(0))  # so that seed 1 is the older one
    monkeypatch.setenv("HPT_CACHE_GIB", str(2.5 * size / 2**30))
    ask(pictures(), Counting(2))
    assert len(list(cache.iterdir())) == 2
    kept = {seed: Counting(seed) for seed in (0, 1)}
    for backbone in kept.values():
        ask(pictures(), backbone)
    assert {seed: backbone.seen for seed, backbone in kept.items()} == {0: 0, 1: 6}


def test_a_cache_of_no_size_keeps_nothing(cache, monkeypatch):
    monkeypatch.setenv("HPT_CACHE_GIB", "0")
    _, features = ask(pictures(), Counting())
    assert features.shape == (6, 4)
    assert not cache.exists() or not list(cache.iterdir())


@pytest.mark.parametrize("text", ["much", "4GB", "nan", "-1"])
def test_a_size_that_is_no_number_is_refused_before_the_work(cache, monkeypatch, text):
    monkeypatch.setenv("HPT_CACHE_GIB", text)
    backbone = Counting()
    with pytest.raises(HptError, match=f"HPT_CACHE_GIB: '{text}'"):
        ask(pictures(), backbone)
    assert backbone.seen == 0


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("HPT_CACHE", str(tmp_path / "file"))
    assert ask(pictures(), Counting())[1].shape == (6, 4)
