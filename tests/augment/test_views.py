import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from hpt_mlflow.augment import views
from hpt_mlflow.augment.crop import centre_crop
from hpt_mlflow.augment.subset import AUGMENTATIONS, Strengths
from hpt_mlflow.augment.views import crop_views, finish_views, normalise

N = 2000
ZERO, ONE = torch.zeros(3), torch.ones(3)


def noise(n, size=4, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (n, 3, size, size), dtype=np.uint8))


def finish(crops, *subset, strengths=None, seed=0):
    torch.manual_seed(seed)
    return finish_views(crops, subset, strengths or Strengths(), ZERO, ONE)


def changed(finished, crops):
    return (finished != crops.float() / 255).flatten(1).any(dim=1)


def assert_share(chosen, probability):
    tolerance = 4 * math.sqrt(probability * (1 - probability) / len(chosen))
    assert chosen.float().mean().item() == pytest.approx(probability, abs=tolerance)


def test_crops_have_two_views_of_each_image_whatever_its_size():
    images = [np.zeros((5, 9, 3), np.uint8), np.full((30, 20, 3), 7, np.uint8)]
    crops = crop_views(images, 8, AUGMENTATIONS, Strengths(), np.random.default_rng(0))
    assert crops.shape == (2, 2, 3, 8, 8)
    assert crops.dtype == torch.uint8
    assert (crops[:, 0] == 0).all()
    assert (crops[:, 1] == 7).all()


def test_two_views_differ_under_the_full_subset():
    image = noise(1, size=32)[0].permute(1, 2, 0).numpy()
    crops = crop_views([image], 16, AUGMENTATIONS, Strengths(), np.random.default_rng(0))
    assert (crops[0] != crops[1]).any()
    torch.manual_seed(0)
    first, second = (finish_views(crop, AUGMENTATIONS, Strengths(), ZERO, ONE) for crop in crops)
    assert not torch.equal(first, second)


def test_two_views_are_the_same_centre_crop_without_augmentations():
    image = noise(1, size=32)[0].permute(1, 2, 0).numpy()
    crops = crop_views([image], 16, (), Strengths(), np.random.default_rng(0))
    assert torch.equal(crops[0], crops[1])
    np.testing.assert_array_equal(crops[0, 0].permute(1, 2, 0).numpy(), centre_crop(image, 16))
    torch.manual_seed(0)
    first, second = (finish_views(crop, (), Strengths(), ZERO, ONE) for crop in crops)
    assert torch.equal(first, second)


def test_an_image_that_must_not_be_written_to_is_cropped_without_a_warning():
    image = np.zeros((20, 20, 3), np.uint8)
    image.flags.writeable = False
    always = torch.is_warn_always_enabled()
    torch.set_warn_always(True)  # and not once a process, which may have been before
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for subset in (AUGMENTATIONS, ()):
                crop_views([image], 8, subset, Strengths(), np.random.default_rng(0))
    finally:
        torch.set_warn_always(always)


def test_crops_are_decided_by_their_generator():
    images = list(noise(3, size=20).permute(0, 2, 3, 1).numpy())
    first, again, other = (
        crop_views(images, 8, AUGMENTATIONS, Strengths(), np.random.default_rng(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_view_without_augmentations_is_the_normalised_crop():
    crops = noise(3)
    mean, std = torch.tensor([0.1, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.5])
    finished = finish_views(crops, (), Strengths(), mean, std)
    expected = (crops.numpy() / 255 - mean.numpy()[:, None, None]) / std.numpy()[:, None, None]
    np.testing.assert_allclose(finished.numpy(), expected, atol=1e-5)


def test_normalise_takes_the_mean_to_zero_and_one_deviation_above_to_one():
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.25, 0.125])
    low, high = mean.view(1, 3, 1, 1).repeat(1, 1, 2, 2), (mean + std).view(1, 3, 1, 1).repeat(1, 1, 2, 2)
    torch.testing.assert_close(normalise(low, mean, std), torch.zeros(1, 3, 2, 2))
    torch.testing.assert_close(normalise(high, mean, std), torch.ones(1, 3, 2, 2))


def test_the_crops_stay_as_they_were():
    crops = noise(20)
    before = crops.clone()
    finish(crops, *AUGMENTATIONS)
    assert torch.equal(crops, before)


def test_the_seed_of_torch_decides_the_views():
    crops = noise(20)
    first, again, other = (finish(crops, *AUGMENTATIONS, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("probability", [0.5, 0.2])
def test_views_are_flipped_with_their_probability(probability):
    crops = noise(N)
    finished = finish(crops, "flip", strengths=Strengths(flip_p=probability))
    original = crops.float() / 255
    flipped = (finished == original.flip(-1)).flatten(1).all(dim=1)
    assert (flipped | (finished == original).flatten(1).all(dim=1)).all()
    assert_share(flipped, probability)


@pytest.mark.parametrize("probability", [0.2, 0.7])
def test_views_are_grey_with_their_probability(probability):
    crops = noise(N)
    finished = finish(crops, "gray", strengths=Strengths(gray_p=probability))
    grey = (finished == finished[:, :1]).flatten(1).all(dim=1)
    assert torch.equal(grey, changed(finished, crops))
    assert_share(grey, probability)


@pytest.mark.parametrize("probability", [0.5, 0.1])
def test_views_are_blurred_with_their_probability(probability):
    crops = noise(N)
    finished = finish(crops, "blur", strengths=Strengths(blur_p=probability, blur_sigma=(1.0, 2.0)))
    assert_share(changed(finished, crops), probability)
    assert finished.std() < (crops.float() / 255).std()


@pytest.mark.parametrize("probability", [0.8, 0.3])
def test_views_are_jittered_with_their_probability(probability):
    crops = noise(N)
    assert_share(changed(finish(crops, "color", strengths=Strengths(color_p=probability)), crops), probability)


@pytest.mark.parametrize("name", ["color", "gray", "blur", "flip"])
def test_a_probability_of_zero_or_one_is_certain(name):
    crops = noise(50)
    probability = {"color": "color_p", "gray": "gray_p", "blur": "blur_p", "flip": "flip_p"}[name]
    strengths = Strengths(blur_sigma=(1.0, 2.0))
    assert changed(finish(crops, name, strengths=replace(strengths, **{probability: 1.0})), crops).all()
    assert not changed(finish(crops, name, strengths=replace(strengths, **{probability: 0.0})), crops).any()


def test_views_stay_between_black_and_white_before_they_are_normalised():
    finished = finish(noise(300), *AUGMENTATIONS)
    assert finished.min() >= -1e-5
    assert finished.max() <= 1 + 1e-5


def test_each_image_draws_its_own_order_of_the_four_adjustments(monkeypatch):
    # Each adjustment appends its number to the value, written to base 4.
    writers = tuple(lambda images, _, i=i: images * 4 + i for i in range(4))
    monkeypatch.setattr(views, "ADJUSTMENTS", writers)
    n = 2400
    written = finish(torch.zeros(n, 3, 1, 1, dtype=torch.uint8), "color", strengths=Strengths(color_p=1.0))
    orders, counts = written[:, 0, 0, 0].unique(return_counts=True)
    assert len(orders) == math.factorial(4)
    digits = [{int(order) // 4**place % 4 for place in range(4)} for order in orders]
    assert all(found == {0, 1, 2, 3} for found in digits)
    assert (counts - n / 24).abs().max() < 5 * math.sqrt(n / 24)


def test_jitter_is_distributed_as_that_of_torchvision():
    colours = [[200, 60, 30], [20, 180, 90], [90, 90, 200], [240, 230, 20]]
    crop = torch.tensor(colours, dtype=torch.uint8).T.reshape(3, 2, 2)
    n = 1500
    ours = finish(crop.expand(n, 3, 2, 2), "color", strengths=Strengths(color_p=1.0))
    jitter = v2.ColorJitter(0.4, 0.4, 0.4, 0.4)
    torch.manual_seed(1)
    theirs = torch.stack([jitter(crop.float() / 255) for _ in range(n)])
    standard_error = ((ours.var(dim=0) + theirs.var(dim=0)) / n).sqrt()
    assert ((ours.mean(dim=0) - theirs.mean(dim=0)).abs() / standard_error).max() < 4
    torch.testing.assert_close(ours.std(dim=0), theirs.std(dim=0), atol=0.02, rtol=0)
    levels = torch.tensor([0.1, 0.5, 0.9])
    torch.testing.assert_close(
        ours.flatten(1).quantile(levels, dim=0), theirs.flatten(1).quantile(levels, dim=0), atol=0.06, rtol=0
    )


@pytest.mark.parametrize("only", ["brightness", "contrast", "saturation", "hue"])
def test_each_adjustment_alone_is_distributed_as_that_of_torchvision(only):
    crop = torch.tensor([[180, 60], [70, 100], [30, 90]], dtype=torch.uint8).reshape(3, 1, 2)
    n = 800
    none = dict.fromkeys(("brightness", "contrast", "saturation", "hue"), 0.0)
    ours = finish(crop.expand(n, 3, 1, 2), "color", strengths=Strengths(color_p=1.0, **none | {only: 0.3}))
    jitter = v2.ColorJitter(**none | {only: 0.3})
    torch.manual_seed(1)
    theirs = torch.stack([jitter(crop.float() / 255) for _ in range(n)])
    torch.testing.assert_close(ours.mean(dim=0), theirs.mean(dim=0), atol=0.03, rtol=0)
    torch.testing.assert_close(ours.std(dim=0), theirs.std(dim=0), atol=0.02, rtol=0)
    assert ours.min().item() == pytest.approx(theirs.min().item(), abs=0.03)
    assert ours.max().item() == pytest.approx(theirs.max().item(), abs=0.03)


def test_the_blur_reaches_from_the_smallest_to_the_largest_sigma():
    crops = torch.zeros(500, 3, 33, 1, dtype=torch.uint8)
    crops[:, :, 16] = 255
    finished = finish(crops, "blur", strengths=Strengths(blur_p=1.0, blur_sigma=(0.5, 2.0)))
    distance = torch.arange(-16.0, 17.0)
    sigma = (finished[:, 0, :, 0] * distance**2).sum(dim=1).sqrt()
    assert sigma.min().item() == pytest.approx(0.5, abs=0.05)
    assert sigma.max().item() == pytest.approx(2.0, abs=0.05)
    assert sigma.mean().item() == pytest.approx(1.25, abs=0.1)


def test_an_image_that_is_grey_already_keeps_its_brightness():
    grey = noise(50)[:, :1].expand(-1, 3, -1, -1)
    finished = finish(grey, "gray", strengths=Strengths(gray_p=1.0))
    torch.testing.assert_close(finished, grey.float() / 255, atol=1e-3, rtol=0)
