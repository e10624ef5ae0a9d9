from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision import transforms

from hpt_mlflow.data.dataset import Dataset
from hpt_mlflow.data.images import Images
from hpt_mlflow.data.statistics import ChannelStatistics
from hpt_mlflow.errors import HptError
from hpt_mlflow.evaluation import features as features_module
from hpt_mlflow.evaluation.features import FeatureReader, FrozenNetwork, feature_precision, prepare
from hpt_mlflow.models.architecture import Architecture
from hpt_mlflow.models.backbone import build_backbone

CPU = torch.device("cpu")
STATISTICS = ChannelStatistics((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))


def pictures(*sizes: tuple[int, int]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for height, width in sizes]


def by_torchvision(arrays: list[np.ndarray], size: int) -> torch.Tensor:
    transform = transforms.Compose(
        [
            transforms.Resize(size),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize(STATISTICS.mean, STATISTICS.std),
        ]
    )
    return torch.stack([transform(Image.fromarray(array)) for array in arrays])


def reader_of(images, **settings) -> FeatureReader:
    return FeatureReader(images, 16, STATISTICS, CPU, **({"batch_size": 2, "threads": 1} | settings))


def convolutions() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1))


def test_prepared_images_are_those_of_torchvision():
    arrays = pictures((16, 16), (24, 24), (16, 22), (30, 16), (9, 9))
    # Where an image is resized, a pixel may be rounded to the next of its 256 levels.
    one_level = 1.01 / 255 / min(STATISTICS.std)
    torch.testing.assert_close(prepare(arrays, 16, STATISTICS), by_torchvision(arrays, 16), atol=one_level, rtol=0)
    for cut_only in (arrays[:1], arrays[2:4]):
        torch.testing.assert_close(prepare(cut_only, 16, STATISTICS), by_torchvision(cut_only, 16))


def test_features_are_a_plain_forward_pass_in_evaluation_mode(open_images):
    arrays = pictures((16, 16), (16, 20), (16, 22), (40, 16), (30, 16))
    torch.manual_seed(0)
    backbone, feature_size = build_backbone(Architecture("resnet18", 16, small_stem=True))
    backbone(torch.randn(4, 3, 16, 16))
    features = reader_of(open_images(arrays)).features(backbone, np.array([3, 0, 1, 2, 4]))
    with torch.no_grad():
        expected = backbone.eval()(by_torchvision(arrays, 16))[[3, 0, 1, 2, 4]]
    assert features.shape == (5, feature_size)
    assert features.dtype == np.float32
    torch.testing.assert_close(torch.from_numpy(features), expected, atol=1e-4, rtol=1e-4)


def test_features_do_not_depend_on_batch_size_or_threads(open_images):
    images, backbone = open_images(pictures(*[(16, 20)] * 7)), convolutions()
    alone = reader_of(images, batch_size=1).features(backbone, np.arange(7))
    together = reader_of(images, batch_size=256, threads=None).features(backbone, np.arange(7))
    np.testing.assert_allclose(alone, together, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_reading_features_changes_neither_mode_nor_statistics(open_images, training):
    backbone = convolutions().train(training)
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    reader_of(open_images(pictures((16, 16)))).features(backbone, np.array([0]))
    assert all(layer.training is training for layer in backbone.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())


def test_channels_stand_last_where_features_are_computed(monkeypatch, open_images):
    found = []
    plain = FrozenNetwork.features

    def watched(network, batch, precision):
        found.append((network.network, batch))
        return plain(network, batch, precision)

    monkeypatch.setattr(FrozenNetwork, "features", watched)
    reader_of(open_images(pictures(*[(16, 16)] * 3))).features(convolutions(), np.arange(3))
    networks, batches = zip(*found, strict=True)
    assert len(batches) == 2
    assert networks[0] is networks[1]
    assert networks[0].get_submodule("0").weight.is_contiguous(memory_format=torch.channels_last)
    assert all(batch.is_contiguous(memory_format=torch.channels_last) for batch in batches)


def test_features_in_bfloat16_are_rounded_and_come_as_float32(open_images):
    reader, backbone = reader_of(open_images(pictures(*[(16, 16)] * 4))), convolutions()
    plain = reader.features(backbone, np.arange(4))
    rounded = replace(reader, precision="bfloat16").features(backbone, np.arange(4))
    assert rounded.dtype == np.float32
    assert 1e-5 < np.linalg.norm(rounded - plain) / np.linalg.norm(plain) < 2e-2


@pytest.mark.parametrize(("native", "on_cuda"), [(True, "bfloat16"), (False, "float32")])
def test_the_precision_follows_the_device_unless_it_is_given(monkeypatch, native, on_cuda):
    monkeypatch.setattr(features_module, "has_native_bfloat16", lambda device: native)
    assert feature_precision("auto", CPU) == "float32"
    assert feature_precision("auto", torch.device("cuda")) == on_cuda
    for given in ("float32", "bfloat16"):
        assert feature_precision(given, CPU) == feature_precision(given, torch.device("cuda")) == given


def test_maps_are_flattened(open_images):
    backbone = nn.Conv2d(3, 2, kernel_size=8, stride=8)
    features = reader_of(open_images(pictures((16, 16)))).features(backbone, np.array([0]))
    assert features.shape == (1, 2 * 2 * 2)


@pytest.mark.parametrize("count", [4, 5])
def test_refreshed_statistics_are_the_mean_over_the_batches(open_images, count):
    arrays = pictures(*[(16, 16)] * count)
    backbone = convolutions()
    backbone[1].running_mean.fill_(100)
    refreshed = reader_of(open_images(arrays)).with_refreshed_batch_norm(backbone, np.arange(count))
    with torch.no_grad():
        maps = backbone[0](by_torchvision(arrays, 16))
    # An image that is left over alone is left out.
    batches = [maps[:2], maps[2:4]]
    mean = torch.stack([batch.mean(dim=(0, 2, 3)) for batch in batches]).mean(dim=0)
    variance = torch.stack([batch.var(dim=(0, 2, 3)) for batch in batches]).mean(dim=0)
    torch.testing.assert_close(refreshed[1].running_mean, mean, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(refreshed[1].running_var, variance, atol=1e-5, rtol=1e-4)


def test_refreshing_works_where_one_image_has_no_variance(open_images):
    backbone = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(3))
    arrays = pictures(*[(16, 16)] * 3)
    refreshed = reader_of(open_images(arrays)).with_refreshed_batch_norm(backbone, np.arange(3))
    expected = by_torchvision(arrays[:2], 16).mean(dim=(0, 2, 3))
    torch.testing.assert_close(refreshed[2].running_mean, expected, atol=1e-5, rtol=1e-4)


def test_refreshing_changes_no_weight_and_nothing_of_the_given_backbone(open_images):
    backbone = convolutions()
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    refreshed = reader_of(open_images(pictures(*[(16, 16)] * 4))).with_refreshed_batch_norm(backbone, np.arange(4))
    assert all(torch.equal(a, b) for a, b in zip(refreshed.parameters(), backbone.parameters(), strict=True))
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())


def test_a_refreshed_copy_trains_like_any_other(open_images):
    """Its BatchNorm follows what it sees from then on, instead of averaging over all that it has ever seen."""
    reader = reader_of(open_images(pictures(*[(16, 16)] * 4)))
    refreshed = reader.with_refreshed_batch_norm(convolutions(), np.arange(4)).train()
    before = refreshed[1].running_mean.clone()
    for _ in range(60):
        refreshed(torch.full((4, 3, 8, 8), 9.0))
    expected = refreshed[0](torch.full((4, 3, 8, 8), 9.0)).mean(dim=(0, 2, 3))
    assert (refreshed[1].running_mean - expected).abs().max() < 0.01 * (before - expected).abs().max()


@pytest.fixture
def vanishing(tmp_path):
    """200 files that are read each time, and their images."""
    files = []
    for i, array in enumerate(pictures(*[(16, 16)] * 200)):
        files.append(tmp_path / f"{i}.png")
        Image.fromarray(array).save(files[-1])
    dataset = Dataset("files", "test:files", files, [file.name for file in files], None, ())
    return files, Images(dataset, np.arange(200), smallest_side=16, memory_limit_bytes=0)


def test_an_image_that_vanished_has_no_features_and_is_reported(vanishing):
    files, images = vanishing
    backbone, indices = convolutions(), np.arange(20, 26)
    whole = reader_of(images).features(backbone, indices)
    for i in (22, 23):  # a whole batch
        files[i].unlink()
    features = reader_of(images).features(backbone, indices)
    assert set(images.unreadable) == {22, 23}
    assert not features[2:4].any()
    np.testing.assert_array_equal(features[[0, 1, 4, 5]], whole[[0, 1, 4, 5]])
    # And so it stays, without a second look.
    np.testing.assert_array_equal(reader_of(images).features(backbone, indices), features)


def test_images_that_vanished_do_not_refresh_statistics(vanishing):
    files, images = vanishing
    once, again = convolutions(), convolutions()
    files[0].unlink()
    once = reader_of(images, batch_size=3).with_refreshed_batch_norm(once, np.arange(3))
    again = reader_of(images, batch_size=3).with_refreshed_batch_norm(again, np.arange(1, 3))
    torch.testing.assert_close(once[1].running_var, again[1].running_var)


def test_too_many_vanished_images_are_refused(vanishing):
    files, images = vanishing
    for file in files[:3]:
        file.unlink()
    with pytest.raises(HptError, match="3 of 200"):
        reader_of(images, batch_size=8).features(convolutions(), np.arange(8))


def test_features_of_nothing_but_vanished_images_are_refused(vanishing):
    files, images = vanishing
    for file in files[:2]:
        file.unlink()
    with pytest.raises(HptError, match="none of 2 images of files"):
        reader_of(images).features(convolutions(), np.arange(2))


class Greedy(nn.Module):
    """A network that is out of memory for more images than these."""

    def __init__(self, images):
        super().__init__()
        self.images = images

    def forward(self, batch):
        if len(batch) > self.images:
            raise torch.OutOfMemoryError
        return batch.mean(dim=(2, 3))


def test_features_are_computed_in_parts_where_memory_is_short():
    batch, parts = torch.randn(11, 3, 4, 4), []
    frozen = FrozenNetwork(Greedy(3))
    frozen.network.register_forward_hook(lambda module, inputs, output: parts.append(len(output)))
    kept = []
    found = frozen.features(batch, after_part=lambda: kept.append(parts[-1]))
    assert torch.equal(found, batch.mean(dim=(2, 3)))
    assert (sum(kept), max(kept)) == (11, 3)
    with pytest.raises(HptError, match=r"^device: cpu has no memory for features of a single image; use device=cpu"):
        FrozenNetwork(Greedy(0)).features(batch)
