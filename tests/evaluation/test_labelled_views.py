from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import kstest

from hpt_mlflow.augment.draws import draw_crops
from hpt_mlflow.augment.subset import Strengths
from hpt_mlflow.augment.views import crop_views
from hpt_mlflow.data.dataset import Dataset
from hpt_mlflow.data.images import Images
from hpt_mlflow.data.statistics import ChannelStatistics
from hpt_mlflow.errors import HptError
from hpt_mlflow.evaluation.features import FeatureReader
from hpt_mlflow.evaluation.labelled_views import TrainingViews

CPU = torch.device("cpu")
STATISTICS = ChannelStatistics((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))


def grey(count, size=(12, 10)):
    """Images that are each of one level of grey, by which they can be told."""
    return [np.full((*size, 3), i, np.uint8) for i in range(count)]


def views_of(images, indices, batch_size=4, seed=0, threads=1):
    reader = FeatureReader(images, 8, STATISTICS, CPU, threads=threads)
    return TrainingViews(reader, np.asarray(indices), batch_size, seed)


def levels(batch):
    """The grey levels that normalised views come from."""
    mean, std = torch.tensor(STATISTICS.mean).view(3, 1, 1), torch.tensor(STATISTICS.std).view(3, 1, 1)
    return ((batch.views * std + mean) * 255).round().mean(dim=(1, 2, 3)).int().tolist()


def test_views_are_as_a_network_wants_them_and_belong_to_their_positions(open_images):
    indices = [9, 3, 5, 7]
    for batch in views_of(open_images(grey(10)), indices).batches(3):
        assert batch.views.shape == (4, 3, 8, 8)
        assert batch.views.dtype == torch.float32
        assert batch.views.is_contiguous(memory_format=torch.channels_last)
        assert levels(batch) == [indices[position] for position in batch.positions]


def test_a_view_is_a_random_crop_that_may_be_flipped(open_images):
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    (batch,) = views_of(open_images([picture]), [0], batch_size=5, seed=4).batches(1)
    flips = 0
    for place in range(5):
        rng = np.random.default_rng((4, 0, place, 2))
        draws = draw_crops(rng, 1, views=1)
        crop = crop_views([picture], 8, ("crop",), Strengths(crop_scale=(0.08, 1.0)), draws)[0, 0]
        crop = crop.permute(1, 2, 0).numpy()
        flipped = rng.random() < 0.5
        flips += flipped
        values = (crop[:, ::-1] if flipped else crop) / 255
        expected = (values - np.array(STATISTICS.mean)) / np.array(STATISTICS.std)
        np.testing.assert_allclose(batch.views[place].permute(1, 2, 0).numpy(), expected, atol=1e-5)
    assert 0 < flips < 5


def test_crops_spread_over_the_scale_and_half_are_flipped(open_images):
    # Red rises from left to right, so the crop's width and its direction can be read from it.
    picture = np.zeros((256, 256, 3), np.uint8)
    picture[:, :, 0] = np.arange(256)
    picture[:, :, 1] = np.arange(256)[:, None]
    (batch,) = views_of(open_images([picture]), [0], batch_size=600).batches(1)
    mean, std = torch.tensor(STATISTICS.mean).view(3, 1, 1), torch.tensor(STATISTICS.std).view(3, 1, 1)
    pixels = (batch.views * std + mean) * 255
    slope = (pixels[:, 0, :, 5] - pixels[:, 0, :, 2]).mean(dim=1) * 8 / 3
    height = (pixels[:, 1, 5] - pixels[:, 1, 2]).mean(dim=1) * 8 / 3
    assert 0.43 < (slope < 0).float().mean() < 0.57
    area = (slope.abs() * height / 256**2).numpy()
    assert area.min() < 0.12
    # Large crops of an oblong aspect do not fit and are drawn again, so that areas are uniform in the lower half.
    small = area[area < 0.5]
    assert kstest((small - 0.08) / 0.42, "uniform").pvalue > 0.001


def test_batches_depend_on_the_seed_alone(open_images):
    images = open_images([np.random.default_rng(i).integers(0, 256, (9, 12, 3), dtype=np.uint8) for i in range(7)])
    one, many, other = (
        list(views_of(images, range(7), seed=seed, threads=threads).batches(4))
        for seed, threads in ((0, 1), (0, 4), (1, 1))
    )
    for first, second in zip(one, many, strict=True):
        torch.testing.assert_close(first.views, second.views, atol=0, rtol=0)
        np.testing.assert_array_equal(first.positions, second.positions)
    assert not torch.equal(one[0].views, other[0].views)


def test_the_first_steps_are_the_same_whatever_the_number_of_steps(open_images):
    images = open_images(grey(7))
    for short, long in zip(views_of(images, range(7)).batches(2), views_of(images, range(7)).batches(5), strict=False):
        torch.testing.assert_close(short.views, long.views, atol=0, rtol=0)


@pytest.mark.parametrize(("images", "batch_size"), [(10, 4), (3, 8), (5, 5), (1, 3)])
def test_every_epoch_has_each_image_once_in_an_order_of_its_own(open_images, images, batch_size):
    batches = views_of(open_images(grey(images)), range(images), batch_size).batches(12)
    positions = np.concatenate([batch.positions for batch in batches])
    assert len(positions) == 12 * batch_size
    epochs = positions[: len(positions) // images * images].reshape(-1, images)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(images), (len(epochs), 1)))
    if images > 3:
        assert len({tuple(epoch) for epoch in epochs}) > 1


@pytest.fixture
def vanishing(tmp_path):
    files = []
    for i, array in enumerate(grey(200)):
        files.append(tmp_path / f"{i}.png")
        Image.fromarray(array).save(files[-1])
    dataset = Dataset("files", "test:files", files, [file.name for file in files], None, ())
    return files, Images(dataset, np.arange(200), smallest_side=16, memory_limit_bytes=0)


def test_an_image_that_vanished_is_left_out_and_reported(vanishing):
    files, images = vanishing
    files[30].unlink()
    (batch,) = views_of(images, [29, 30, 31], batch_size=3).batches(1)
    assert sorted(levels(batch)) == [29, 31]
    assert sorted(batch.positions) == [0, 2]
    assert set(images.unreadable) == {30}


def test_too_many_vanished_images_are_refused(vanishing):
    files, images = vanishing
    for i in range(3):
        files[i].unlink()
    with pytest.raises(HptError, match="3 of 200"):
        list(views_of(images, range(8), batch_size=8).batches(1))


def test_a_batch_of_nothing_but_vanished_images_is_refused(vanishing):
    files, images = vanishing
    files[5].unlink()
    with pytest.raises(HptError, match="none of 2 images of files"):
        list(views_of(images, [5], batch_size=2).batches(1))


def test_stopping_early_leaves_no_threads_at_work(open_images):
    batches = views_of(open_images(grey(5)), range(5)).batches(1000)
    next(batches)
    batches.close()
