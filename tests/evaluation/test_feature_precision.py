from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from hpt_mlflow.data.cache import cache_folder
from hpt_mlflow.data.statistics import ChannelStatistics
from hpt_mlflow.evaluation import feature_precision
from hpt_mlflow.evaluation.feature_precision import FeaturePrecision, choose_feature_precision
from hpt_mlflow.evaluation.features import FeatureReader, FrozenNetwork

CPU = torch.device("cpu")
STATISTICS = ChannelStatistics((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
COUNT = 80


class Colours(nn.Module):
    """Two features that stand far apart for each image, whatever the arithmetic."""

    def forward(self, x):
        angle = 3 * x.mean(dim=(1, 2, 3))
        return torch.stack([angle.cos(), angle.sin()], dim=1)


class Offset(nn.Module):
    """Small differences on a large offset, by a product that bfloat16 rounds away."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        nn.init.eye_(self.layer.weight)
        nn.init.constant_(self.layer.bias, 100.0)

    def forward(self, x):
        return self.layer(x.mean(dim=(2, 3))[:, :2])


class Turning(Colours):
    """Features that keep their order, but turn where they are not float32."""

    def forward(self, x):
        return super().forward(x) + (0.2 if torch.is_autocast_enabled("cpu") else 0)


class NotANumber(Colours):
    def forward(self, x):
        return super().forward(x) * (float("nan") if torch.is_autocast_enabled("cpu") else 1)


@pytest.fixture
def reader(open_images):
    levels = np.linspace(0, 255, COUNT).astype(np.uint8)
    arrays = [np.full((8, 8, 3), level) for level in np.random.default_rng(0).permutation(levels)]
    return FeatureReader(open_images(arrays), 8, STATISTICS, CPU, batch_size=32, threads=1)


@pytest.fixture
def native(monkeypatch):
    monkeypatch.setattr(feature_precision, "has_native_bfloat16", lambda device: True)


@pytest.fixture
def speeds(native, monkeypatch):
    """Seconds of a trial by precision; and which features were asked for."""
    seconds, asked = {"float32": 2.0, "bfloat16": 1.0}, []

    def timed(network, batches, precision):
        asked.append(precision)
        return torch.cat([network.features(batch, precision) for batch in batches]), seconds[precision]

    monkeypatch.setattr(feature_precision, "_timed", timed)
    return seconds, asked


def test_what_agrees_and_is_faster_is_taken(reader, speeds):
    chosen = choose_feature_precision("auto", reader, [Colours(), Colours()])
    # Of 80 images 64 are tried, with two networks.
    assert chosen == FeaturePrecision("bfloat16", "float32 32 images/s, bfloat16 64 images/s")


def test_what_is_slower_is_not_taken(reader, speeds):
    speeds[0]["bfloat16"] = 2.5
    chosen = choose_feature_precision("auto", reader, [Colours()])
    assert chosen == FeaturePrecision("float32", "float32 32 images/s, bfloat16 26 images/s")


@pytest.mark.parametrize(
    ("kind", "why"),
    [(Offset, "of nearest neighbours, cosine"), (Turning, "0.0% of nearest neighbours, cosine"), (NotANumber, "nan")],
)
@pytest.mark.parametrize("first", [True, False])
def test_features_that_differ_are_refused(reader, speeds, kind, why, first):
    networks = [kind(), Colours()] if first else [Colours(), kind()]
    chosen = choose_feature_precision("auto", reader, networks)
    assert chosen.precision == "float32"
    assert chosen.trial.startswith("float32 32 images/s, bfloat16 64 images/s; bfloat16 differs: ")
    assert why in chosen.trial


def test_a_large_offset_hides_from_the_angle_but_not_from_the_neighbours(reader, native):
    """What the second criterion is for."""
    batches = [batch for batch, _ in reader.batches(np.arange(64))]
    network = FrozenNetwork(Offset())
    plain, rounded = (torch.cat([network.features(b, p) for b in batches]) for p in ("float32", "bfloat16"))
    assert 1 - torch.cosine_similarity(plain, rounded).min() < feature_precision.MOST_COSINE_DISTANCE
    assert feature_precision._why_refused(plain, rounded)
    assert not feature_precision._why_refused(plain, plain.clone())


def test_speeds_are_measured(reader, native):
    chosen = choose_feature_precision("auto", reader, [Colours()])
    words = chosen.trial.split()
    assert (words[0], words[2:4]) == ("float32", ["images/s,", "bfloat16"])
    assert float(words[1]) > 0
    assert float(words[4]) > 0


def test_the_fastest_of_the_passes_counts(reader, monkeypatch):
    # One pass before, then two that are timed.
    clock = iter([0.0, 5.0, 10.0, 13.0])
    monkeypatch.setattr(feature_precision.time, "perf_counter", lambda: next(clock))
    batches = [batch for batch, _ in reader.batches(np.arange(64))]
    network = FrozenNetwork(Colours())
    features, seconds = feature_precision._timed(network, batches, "float32")
    assert seconds == 3
    assert features.shape == (64, 2)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_what_the_user_says_is_not_tried(reader, speeds, precision):
    assert choose_feature_precision(precision, reader, [Offset()]) == FeaturePrecision(precision)
    assert not speeds[1]


def test_nothing_is_tried_where_bfloat16_is_emulated(reader, speeds, monkeypatch):
    monkeypatch.setattr(feature_precision, "has_native_bfloat16", lambda device: False)
    assert choose_feature_precision("auto", reader, [Colours()]) == FeaturePrecision("float32")
    assert not speeds[1]


def test_the_answer_stays_the_same_where_speeds_drift(reader, speeds):
    first = choose_feature_precision("auto", reader, [Colours()])
    speeds[0]["bfloat16"] = 9.0
    asked = len(speeds[1])
    assert choose_feature_precision("auto", reader, [Colours()]) == first
    assert len(speeds[1]) == asked


@pytest.mark.parametrize("other", ["network", "one more network", "statistics", "margin", "images"])
def test_what_differs_is_tried_anew(reader, speeds, other):
    choose_feature_precision("auto", reader, [Offset()])
    asked, networks = len(speeds[1]), [Offset()]
    if other == "network":
        networks[0].layer.bias.data[0] += 1
    elif other == "one more network":
        networks.append(Colours())
    elif other == "statistics":
        reader = replace(reader, statistics=ChannelStatistics((0.4, 0.5, 0.5), (0.25, 0.25, 0.25)))
    elif other == "margin":
        reader = replace(reader, resize_to=12)
    else:
        reader.images.indices = reader.images.indices[1:]
    choose_feature_precision("auto", reader, networks)
    assert len(speeds[1]) > asked


@pytest.mark.parametrize("text", ["", "[]", "{}", json.dumps({"precision": "float8", "trial": ""})])
def test_a_damaged_answer_is_found_anew(reader, speeds, text):
    first = choose_feature_precision("auto", reader, [Colours()])
    (file,) = (cache_folder() / "feature_precision").iterdir()
    file.write_text(text)
    assert choose_feature_precision("auto", reader, [Colours()]) == first
    assert json.loads(file.read_text())["precision"] == "bfloat16"


@pytest.mark.parametrize(("count", "tried"), [(10, 10), (64, 64), (1000, 64), (2000, 125), (10**5, 256)])
def test_a_trial_takes_few_images_from_all_over(count, tried):
    indices = np.arange(count) * 3
    chosen = feature_precision._evenly(indices)
    assert (len(chosen), chosen[0], chosen[-1]) == (tried, 0, indices[-1])
    assert len(set(chosen.tolist())) == tried


def test_the_backbone_is_left_as_it_is(reader, native):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    choose_feature_precision("auto", reader, [network])
    assert network.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
