import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import v2

from hpt_mlflow.augment import views
from hpt_mlflow.augment.crop import centre_crop
from hpt_mlflow.augment.draws import blur_radius, draw_crops, draw_finish
from hpt_mlflow.augment.on_gpu import finish_in_batches
from hpt_mlflow.augment.subset import AUGMENTATIONS, Strengths
from hpt_mlflow.augment.views import crop_views, finish_image_by_image, finish_views

N = 2000
ZERO, ONE = torch.zeros(3), torch.ones(3)
MEAN, STD = torch.tensor([0.1, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.5])


def noise(n, size=4, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (n, 3, size, size), dtype=np.uint8))


def noisy_images(*shapes):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]


def cut(images, size=8, subset=AUGMENTATIONS, seed=0):
    return crop_views(images, size, subset, Strengths(), draw_crops(np.random.default_rng(seed), len(images)))


@pytest.fixture(params=[finish_image_by_image, finish_in_batches])
def finish(request):
    """Draws for a subset and finishes crops by them, in either way; not normalised."""

    def finished(crops, *subset, strengths=None, seed=0):
        strengths = strengths or Strengths()
        draws = draw_finish(np.random.default_rng(seed), len(crops), subset, strengths)
        return request.param(crops, draws, blur_radius(strengths), ZERO, ONE)

    return finished


def changed(finished, crops):
    return ((finished - crops.float() / 255).abs() > 1e-5).flatten(1).any(dim=1)


def test_crops_have_two_views_of_each_image_whatever_its_size():
    crops = cut([np.zeros((5, 9, 3), np.uint8), np.full((30, 20, 3), 7, np.uint8)])
    assert crops.shape == (2, 2, 3, 8, 8)
    assert crops.dtype == torch.uint8
    assert (crops[:, 0] == 0).all()
    assert (crops[:, 1] == 7).all()


def test_no_images_give_no_views():
    crops = cut([])
    assert crops.shape == (2, 0, 3, 8, 8)
    draws = draw_finish(np.random.default_rng(0), 0, AUGMENTATIONS, Strengths())
    for way in (finish_image_by_image, finish_in_batches):
        assert way(crops[0], draws, 8, ZERO, ONE).shape == (0, 3, 8, 8)


@pytest.mark.parametrize("size", [1, 8, 33])
def test_images_of_extreme_sizes_are_cropped(size):
    images = noisy_images((1, 1), (1, 500), (500, 1), (3, 2000), (2000, 3), (1200, 2000))
    crops = cut(images, size)
    assert crops.shape == (2, 6, 3, size, size)
    assert (crops[:, 0] == torch.from_numpy(images[0][0, 0]).view(1, 3, 1, 1)).all()
    assert cut(images, size, ()).shape == (2, 6, 3, size, size)


def test_two_views_differ_under_the_full_subset(finish):
    crops = cut(noisy_images((32, 32)), 16)
    assert (crops[0] != crops[1]).any()
    assert (finish(crops[0], *AUGMENTATIONS) - finish(crops[1], *AUGMENTATIONS)).abs().max() > 0.01


@pytest.mark.parametrize("subset", [(), ("color", "gray", "blur", "flip")], ids=["none", "all but crop"])
def test_two_views_are_the_same_centre_crop_where_crops_are_not_random(subset):
    images = noisy_images((32, 32), (20, 50), (41, 9))
    crops = cut(images, 16, subset)
    assert torch.equal(crops[0], crops[1])
    for crop, image in zip(crops[0], images, strict=True):
        np.testing.assert_array_equal(crop.permute(1, 2, 0).numpy(), centre_crop(image, 16))


def test_an_image_that_must_not_be_written_to_is_cropped_without_a_warning():
    image = np.zeros((20, 20, 3), np.uint8)
    image.flags.writeable = False
    always = torch.is_warn_always_enabled()
    torch.set_warn_always(True)  # and not once a process, which may have been before
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for subset in (AUGMENTATIONS, ()):
                cut([image], subset=subset)
    finally:
        torch.set_warn_always(always)


@pytest.mark.parametrize("subset", [AUGMENTATIONS, ()], ids=["crop", "none"])
def test_how_an_image_lies_in_memory_does_not_matter(subset, tmp_path):
    (image,) = noisy_images((30, 44))
    fixed = image.copy()
    fixed.flags.writeable = False
    wide = np.zeros((60, 100, 5), np.uint8)
    wide[5:35, 7:95:2, 1:4] = image
    np.save(tmp_path / "image.npy", image)
    mapped = np.load(tmp_path / "image.npy", mmap_mode="r")
    expected = cut([image], subset=subset)
    for same in (fixed, wide[5:35, 7:95:2, 1:4], np.asfortranarray(image), mapped):
        before = same.flags.writeable
        assert torch.equal(cut([same], subset=subset), expected)
        assert same.flags.writeable == before


def test_cropping_leaves_the_images_as_they_were():
    images = noisy_images((30, 44), (9, 9))
    before = [image.copy() for image in images]
    cut(images)
    for image, old in zip(images, before, strict=True):
        np.testing.assert_array_equal(image, old)
        assert image.flags.writeable


def test_how_crops_and_statistics_lie_in_memory_does_not_matter():
    x_first = cut(noisy_images(*[(30, 30)] * 12), 16)[0]
    draws = draw_finish(np.random.default_rng(0), 12, AUGMENTATIONS, Strengths())
    expected = finish_views(x_first, draws, Strengths(), MEAN, STD)
    wide = torch.zeros(24, 5, 20, 18, dtype=torch.uint8)
    wide[::2, 1:4, 2:18, 1:17] = x_first
    for same in (
        x_first.contiguous(),
        x_first.to(memory_format=torch.channels_last),
        wide[::2, 1:4, 2:18, 1:17],
    ):
        assert torch.equal(finish_views(same, draws, Strengths(), MEAN, STD), expected)
    columns = torch.stack([MEAN, STD], dim=1)
    assert torch.equal(finish_views(x_first, draws, Strengths(), columns[:, 0], columns[:, 1]), expected)


@pytest.mark.parametrize("which", [slice(4, 17), np.array([9, 3, 3, 0])], ids=["slice", "chosen"])
def test_a_part_of_a_batch_gets_the_views_that_it_gets_in_the_whole(which, finish):
    images = noisy_images(*[(20 + i, 40 - i) for i in range(20)])
    draws = draw_crops(np.random.default_rng(0), 20)
    whole = crop_views(images, 12, AUGMENTATIONS, Strengths(), draws)
    some = [images[i] for i in np.arange(20)[which]]
    part = crop_views(some, 12, AUGMENTATIONS, Strengths(), draws.part(which))
    assert torch.equal(part, whole[:, which])
    finishing = draw_finish(np.random.default_rng(1), 20, AUGMENTATIONS, Strengths())
    for way in (finish_image_by_image, finish_in_batches):
        expected = way(whole[0], finishing, 8, MEAN, STD)[which]
        torch.testing.assert_close(way(part[0], finishing.part(which), 8, MEAN, STD), expected, atol=1e-5, rtol=0)


def test_views_do_not_depend_on_the_number_of_threads():
    images = noisy_images(*[(20 + i, 60 - i) for i in range(41)])
    draws = draw_crops(np.random.default_rng(0), 41)
    finishing = draw_finish(np.random.default_rng(1), 41, AUGMENTATIONS, Strengths())
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for subset in (AUGMENTATIONS, ()):
                crops = crop_views(images, 16, subset, Strengths(), draws)
                found.append((crops, finish_views(crops[0], finishing, Strengths(), MEAN, STD)))
    finally:
        torch.set_num_threads(before)
    for i, (crops, finished) in enumerate(found):
        assert torch.equal(crops, found[i % 2][0])
        assert torch.equal(finished, found[i % 2][1])


@pytest.mark.parametrize(("threads", "count", "parts"), [(1, 100, 1), (3, 100, 3), (3, 17, 2), (3, 15, 1), (3, 0, 1)])
def test_a_batch_is_divided_among_the_threads_where_it_is_large_enough(threads, count, parts, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    done = []
    views._in_parts(count, done.append)
    assert len(done) == parts
    assert sorted(i for part in done for i in range(part.start, part.stop)) == list(range(count))


def test_a_failure_in_a_thread_is_not_lost(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    with pytest.raises(ValueError, match="unpack"):
        cut([*noisy_images(*[(9, 9)] * 39), np.zeros((9,), np.uint8)], subset=())


@pytest.mark.parametrize("way", [finish_image_by_image, finish_in_batches])
def test_views_are_channels_last_float32(way):
    crops = cut(noisy_images(*[(20, 20)] * 5), 16)[0]
    draws = draw_finish(np.random.default_rng(0), 5, AUGMENTATIONS, Strengths())
    for given in (crops, crops.contiguous()):
        finished = way(given, draws, 8, MEAN, STD)
        assert finished.dtype == torch.float32
        assert finished.shape == (5, 3, 16, 16)
        assert finished.is_contiguous(memory_format=torch.channels_last)


def test_a_processor_finishes_image_by_image(monkeypatch):
    monkeypatch.setattr(views, "finish_image_by_image", lambda *given: given)
    draws = draw_finish(np.random.default_rng(0), 2, AUGMENTATIONS, Strengths())
    crops = noise(2)
    assert finish_views(crops, draws, Strengths(blur_sigma=(0.1, 3.0)), MEAN, STD) == (crops, draws, 12, MEAN, STD)


def test_another_device_finishes_in_batches(monkeypatch):
    monkeypatch.setattr(views, "finish_in_batches", lambda *given: given[2])
    draws = draw_finish(np.random.default_rng(0), 2, AUGMENTATIONS, Strengths())
    assert finish_views(noise(2).to("meta"), draws, Strengths(), MEAN, STD) == 8


@pytest.mark.parametrize("way", [finish_image_by_image, finish_in_batches])
def test_a_view_without_augmentations_is_the_normalised_crop(way):
    crops = noise(3)
    finished = way(crops, draw_finish(np.random.default_rng(0), 3, (), Strengths()), 8, MEAN, STD)
    expected = (crops.numpy() / 255 - MEAN.numpy()[:, None, None]) / STD.numpy()[:, None, None]
    np.testing.assert_allclose(finished.numpy(), expected, atol=1e-5)


def test_the_crops_stay_as_they_were(finish):
    for crops in (noise(20), noise(20).transpose(2, 3)):
        before = crops.clone()
        finish(crops, *AUGMENTATIONS)
        assert torch.equal(crops, before)


def test_the_draws_decide_the_views(finish):
    crops = noise(20)
    first, again, other = (finish(crops, *AUGMENTATIONS, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("name", ["color", "gray", "blur", "flip"])
def test_a_probability_of_zero_or_one_is_certain(name, finish):
    crops = noise(50)
    strengths = Strengths(blur_sigma=(1.0, 2.0))
    assert changed(finish(crops, name, strengths=replace(strengths, **{f"{name}_p": 1.0})), crops).all()
    assert not changed(finish(crops, name, strengths=replace(strengths, **{f"{name}_p": 0.0})), crops).any()


def test_views_are_distributed_as_those_of_the_chain_of_torchvision():
    n, size = 1200, 16
    rng = np.random.default_rng(0)
    # Large patches of plain colour, so that both where a crop lies and what is done to its colours matter.
    image = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8).repeat(12, axis=0).repeat(11, axis=1)
    crops = cut([image] * n, size)
    draws = draw_finish(rng, n, AUGMENTATIONS, Strengths())
    ours = finish_views(crops[0], draws, Strengths(), MEAN, STD)
    chain = v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(0.2, 1.0), antialias=True),
            v2.ToDtype(torch.float32, scale=True),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.4)], p=0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(17, (0.1, 2.0))], p=0.5),
            v2.RandomHorizontalFlip(),
            v2.Normalize(MEAN.tolist(), STD.tolist()),
        ]
    )
    torch.manual_seed(0)
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    theirs = torch.stack([chain(tensor) for _ in range(n)])

    def described(finished):
        """Statistics of each view that a single augmentation moves; rounded, since grey is not quite so."""
        mean, variance = finished.mean(dim=(2, 3)), finished.var(dim=(2, 3))
        roughness = finished.diff(dim=3).abs().mean(dim=(1, 2, 3))
        greyness = (finished * STD.view(3, 1, 1) + MEAN.view(3, 1, 1)).std(dim=1).mean(dim=(1, 2))
        slope = (finished[..., size // 2 :].mean(dim=(1, 2, 3)) - finished[..., : size // 2].mean(dim=(1, 2, 3))).abs()
        return torch.stack([*mean.T, *variance.T, roughness, greyness, slope]).round(decimals=5).numpy()

    names = ["mean"] * 3 + ["variance"] * 3 + ["roughness", "greyness", "slope"]
    for name, a, b in zip(names, described(ours), described(theirs), strict=True):
        assert stats.ks_2samp(a, b).pvalue > 1e-3, name
