"""What is drawn, against what torchvision draws. Seeds are fixed, so that a result is always the same."""

import itertools

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import ColorJitter, GaussianBlur

from hpt_mlflow.augment.draws import blur_radius, draw_crops, draw_finish
from hpt_mlflow.augment.subset import AUGMENTATIONS, Strengths

N = 4000
# The probability of a difference as large by chance.
UNLIKELY = 1e-3
SUBSETS = [(), ("crop",), ("color",), ("gray", "flip"), ("crop", "blur"), AUGMENTATIONS]


def finish_draws(subset=AUGMENTATIONS, strengths=None, seed=0, count=N):
    return draw_finish(np.random.default_rng(seed), count, subset, strengths or Strengths())


def assert_same_distribution(ours, theirs, name=""):
    assert stats.ks_2samp(ours, theirs).pvalue > UNLIKELY, name


def assert_share(chosen, probability):
    assert stats.binomtest(int(chosen.sum()), len(chosen), probability).pvalue > UNLIKELY


def test_the_two_crops_of_an_image_and_those_of_others_have_nothing_in_common():
    draws = draw_crops(np.random.default_rng(0), N)
    numbers = np.concatenate([draws.shapes[:, :, 0], draws.places], axis=2).transpose(1, 0, 2).reshape(N, 8)
    for a, b in itertools.combinations(numbers.T, 2):
        assert stats.pearsonr(a, b).pvalue > UNLIKELY
    for a in numbers.T:
        assert stats.pearsonr(a[1:], a[:-1]).pvalue > UNLIKELY
    assert stats.pearsonr(draws.shapes[0, :, 0, 0], draws.shapes[0, :, 1, 0]).pvalue > UNLIKELY


def test_colour_factors_are_distributed_as_those_of_torchvision():
    ours = finish_draws(strengths=Strengths(brightness=0.4, contrast=0.3, saturation=0.7, hue=0.2))
    torch.manual_seed(2)
    ranges = ([0.6, 1.4], [0.7, 1.3], [0.3, 1.7], [-0.2, 0.2])
    theirs = np.array([ColorJitter.get_params(*ranges)[1:] for _ in range(N)])
    for operation, name in enumerate(("brightness", "contrast", "saturation", "hue")):
        assert_same_distribution(ours.factors[:, operation], theirs[:, operation], name)
    for a, b in itertools.combinations(ours.factors.T, 2):
        assert stats.pearsonr(a, b).pvalue > UNLIKELY


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_a_strength_of_zero_gives_the_factor_that_changes_nothing(name):
    place = ("brightness", "contrast", "saturation", "hue").index(name)
    factors = finish_draws(strengths=Strengths(**{name: 0.0})).factors
    assert (factors[:, place] == (0.0 if name == "hue" else 1.0)).all()
    assert (factors.std(axis=0) > 0.1).sum() == 3


def test_every_order_of_the_colour_operations_is_as_likely():
    orders, counts = np.unique(finish_draws(count=24 * 200).order, axis=0, return_counts=True)
    assert sorted(map(tuple, orders.tolist())) == sorted(itertools.permutations(range(4)))
    assert stats.chisquare(counts).pvalue > UNLIKELY


def test_sigma_is_distributed_as_that_of_torchvision():
    torch.manual_seed(3)
    theirs = [GaussianBlur.get_params(0.1, 2.0) for _ in range(N)]
    sigma = finish_draws().sigma
    assert_same_distribution(sigma[sigma > 0], theirs)


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("name", ["color", "gray", "blur", "flip"])
def test_an_augmentation_comes_with_its_probability(name, probability):
    draws = finish_draws(strengths=Strengths(**{f"{name}_p": probability}))
    usual = {"color": 0.8, "gray": 0.2, "blur": 0.5, "flip": 0.5} | {name: probability}
    chosen = {"color": draws.color, "gray": draws.gray, "blur": draws.sigma > 0, "flip": draws.flip}
    for other, mask in chosen.items():
        assert_share(mask, usual[other])
    for a, b in itertools.combinations(chosen.values(), 2):
        assert stats.pearsonr(a, b).pvalue > UNLIKELY


@pytest.mark.parametrize("subset", SUBSETS, ids=",".join)
def test_the_same_numbers_are_drawn_whatever_the_subset(subset):
    rng, again = np.random.default_rng(5), np.random.default_rng(5)
    some, every = draw_finish(rng, 200, subset, Strengths()), draw_finish(again, 200, AUGMENTATIONS, Strengths())
    assert rng.random() == again.random()
    np.testing.assert_array_equal(some.order, every.order)
    np.testing.assert_array_equal(some.factors, every.factors)
    for name in ("color", "gray", "flip"):
        chosen = getattr(every, name) if name in subset else np.zeros(200, bool)
        np.testing.assert_array_equal(getattr(some, name), chosen)
    np.testing.assert_array_equal(some.sigma, every.sigma if "blur" in subset else np.zeros(200))


def test_the_generator_decides_the_draws():
    for draw in (finish_draws, lambda seed: draw_crops(np.random.default_rng(seed), 20)):
        first, again, other = draw(seed=7), draw(seed=7), draw(seed=8)
        for a, b in zip(first, again, strict=True):
            np.testing.assert_array_equal(a, b)
        assert not all((a == b).all() for a, b in zip(first, other, strict=True))


def test_draws_have_the_types_and_shapes_that_are_promised():
    crops, finish = draw_crops(np.random.default_rng(0), 7), finish_draws(count=7)
    assert [(values.shape, values.dtype) for values in crops] == [((2, 7, 10, 2), "f8"), ((2, 7, 2), "f8")]
    kinds = {name: (values.shape, values.dtype.str[1:]) for name, values in finish._asdict().items()}
    assert kinds == {
        "color": ((7,), "b1"),
        "order": ((7, 4), "i8"),
        "factors": ((7, 4), "f4"),
        "gray": ((7,), "b1"),
        "sigma": ((7,), "f4"),
        "flip": ((7,), "b1"),
    }


@pytest.mark.parametrize("which", [slice(3, 9), slice(0, 0), slice(1, None, 3), np.array([5, 2, 2, 0])], ids=str)
def test_a_part_is_that_of_its_images_in_the_order_asked_for(which):
    finish, crops = finish_draws(count=12), draw_crops(np.random.default_rng(0), 12)
    positions = np.arange(12)[which]
    for part, whole in zip(finish.part(which), finish, strict=True):
        np.testing.assert_array_equal(part, np.array([whole[i] for i in positions]).reshape(part.shape))
    for part, whole in zip(crops.part(which), crops, strict=True):
        assert part.shape == (2, len(positions), *whole.shape[2:])
        for place, i in enumerate(positions):
            np.testing.assert_array_equal(part[:, place], whole[:, i])


@pytest.mark.parametrize(("largest", "radius"), [(2.0, 8), (0.3, 2), (2.1, 9)])
def test_the_blur_is_cut_off_at_four_standard_deviations(largest, radius):
    assert blur_radius(Strengths(blur_sigma=(0.1, largest))) == radius
