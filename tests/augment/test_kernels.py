"""The views against torchvision, operation by operation: compiled loops and whole batches in torch."""

import itertools

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional

from hpt_mlflow.augment import crop_kernels, kernels
from hpt_mlflow.augment.draws import CropDraws, FinishDraws, draw_crops, draw_finish
from hpt_mlflow.augment.on_gpu import finish_in_batches
from hpt_mlflow.augment.subset import AUGMENTATIONS, Strengths
from hpt_mlflow.augment.views import crop_views, finish_image_by_image

ZERO, ONE = torch.zeros(3), torch.ones(3)
MEAN, STD = torch.tensor([0.1, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.5])
RADIUS = 8
NEUTRAL = (1.0, 1.0, 1.0, 0.0)
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
ADJUSTMENTS = (
    functional.adjust_brightness,
    functional.adjust_contrast,
    functional.adjust_saturation,
    functional.adjust_hue,
)
# Of the order in which the draws count operations.
ORDERS = list(itertools.permutations(range(4)))

both_ways = pytest.mark.parametrize("finish", [finish_image_by_image, finish_in_batches])


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def colourful(n, height=11, width=11):
    """Noise, and the colours at which hue and saturation are peculiar."""
    crops = noise(n, 3, height, width)
    peculiar = [(0, 0, 0), (255, 255, 255), (128, 128, 128)]
    peculiar += [c for c in itertools.product((0, 255), repeat=3) if 0 < sum(c) < 765]
    for place, colour in enumerate(peculiar):
        crops[:, :, place // width, place % width] = colour
    return torch.from_numpy(crops)


def draws_of(n, color=False, order=(0, 1, 2, 3), factors=NEUTRAL, gray=False, sigma=0.0, flip=False):
    """What is done to each of n images; a single value holds for all of them."""
    return FinishDraws(
        np.broadcast_to(color, n).copy(),
        np.broadcast_to(np.array(order, np.int64), (n, 4)).copy(),
        np.broadcast_to(np.array(factors, np.float32), (n, 4)).copy(),
        np.broadcast_to(gray, n).copy(),
        np.broadcast_to(np.array(sigma, np.float32), n).copy(),
        np.broadcast_to(flip, n).copy(),
    )


def assert_near(ours, theirs, atol=2e-5):
    torch.testing.assert_close(ours.contiguous(), theirs.contiguous(), atol=atol, rtol=0)


@both_ways
@pytest.mark.parametrize(
    ("operation", "values"),
    [
        (BRIGHTNESS, (0.0, 0.3, 1.0, 1.4, 2.5)),
        (CONTRAST, (0.0, 0.3, 1.0, 1.4, 2.5)),
        (SATURATION, (0.0, 0.3, 1.0, 1.4, 2.5)),
        (HUE, (-0.5, -0.31, 0.0, 0.07, 0.5)),
    ],
    ids=["brightness", "contrast", "saturation", "hue"],
)
def test_a_colour_operation_is_that_of_torchvision(finish, operation, values):
    crops = colourful(len(values))
    factors = np.tile(np.array(NEUTRAL, np.float32), (len(values), 1))
    factors[:, operation] = values
    ours = finish(crops, draws_of(len(values), color=True, factors=factors), RADIUS, ZERO, ONE)
    images = crops.float() / 255
    assert_near(ours, torch.stack([ADJUSTMENTS[operation](i, v) for i, v in zip(images, values, strict=True)]))


@both_ways
def test_the_colour_operations_come_in_any_order(finish):
    factors = (1.3, 1.4, 1.8, -0.3)
    crops = colourful(1, 12, 12).expand(len(ORDERS), -1, -1, -1)
    expected = []
    for order in ORDERS:
        image = crops[0].float() / 255
        for operation in order:
            image = ADJUSTMENTS[operation](image, factors[operation])
        expected.append(image)
    ours = finish(crops, draws_of(len(ORDERS), color=True, order=ORDERS, factors=factors), RADIUS, ZERO, ONE)
    assert_near(ours, torch.stack(expected))
    apart = [(a - b).abs().max() for a, b in itertools.combinations(expected, 2)]
    assert min(apart) > 1e-2  # or else this test could not tell orders apart


@both_ways
def test_factors_do_nothing_to_an_image_whose_colours_stay(finish):
    crops = colourful(2)
    color = np.array([True, False])
    ours = finish(crops, draws_of(2, color=color, factors=(0.5, 0.5, 0.5, 0.2)), RADIUS, ZERO, ONE)
    assert_near(ours[1], crops[1].float() / 255)
    assert (ours[0] - crops[0].float() / 255).abs().max() > 0.1


@both_ways
def test_grey_is_that_of_torchvision(finish):
    crops = colourful(2)
    ours = finish(crops, draws_of(2, gray=np.array([True, False])), RADIUS, ZERO, ONE)
    images = crops.float() / 255
    assert_near(ours[0], functional.rgb_to_grayscale(images[0], num_output_channels=3))
    assert_near(ours[1], images[1])


@both_ways
@pytest.mark.parametrize(("height", "width"), [(9, 9), (33, 33), (12, 20), (20, 12)])
def test_blur_is_that_of_torchvision(finish, height, width):
    sigmas = (0.1, 0.4, 1.0, 2.0)
    crops = colourful(len(sigmas), height, width)
    ours = finish(crops, draws_of(len(sigmas), sigma=sigmas), RADIUS, ZERO, ONE)
    images = crops.float() / 255
    assert_near(
        ours,
        torch.stack([functional.gaussian_blur(i, [17, 17], [s, s]) for i, s in zip(images, sigmas, strict=True)]),
    )


@both_ways
@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 2), (5, 5), (8, 8)])
def test_blur_of_an_image_smaller_than_the_radius_is_cut_off_at_its_border(finish, height, width):
    crops = torch.from_numpy(noise(2, 3, height, width))
    kernel = [2 * min(RADIUS, side - 1) + 1 for side in (width, height)]
    ours = finish(crops, draws_of(2, sigma=1.7), RADIUS, ZERO, ONE)
    assert_near(ours, functional.gaussian_blur(crops.float() / 255, kernel, [1.7, 1.7]))


@both_ways
def test_flip_is_that_of_torchvision(finish):
    crops = colourful(2, 5, 10)
    ours = finish(crops, draws_of(2, flip=np.array([True, False])), RADIUS, ZERO, ONE)
    images = crops.float() / 255
    assert_near(ours[0], functional.horizontal_flip(images[0]))
    assert_near(ours[1], images[1])


@both_ways
def test_normalising_is_that_of_torchvision(finish):
    crops = colourful(2)
    ours = finish(crops, draws_of(2), RADIUS, MEAN, STD)
    assert_near(ours, functional.normalize(crops.float() / 255, MEAN.tolist(), STD.tolist()))


@both_ways
def test_colour_comes_before_grey_and_grey_before_blur_and_flip(finish):
    crops = colourful(1, 18, 18)
    everything = draws_of(1, color=True, factors=(1.4, 0.7, 1.3, 0.2), gray=True, sigma=1.2, flip=True)
    image = crops[0].float() / 255
    for adjust, value in zip(ADJUSTMENTS, (1.4, 0.7, 1.3, 0.2), strict=True):
        image = adjust(image, value)
    image = functional.rgb_to_grayscale(image, num_output_channels=3)
    image = functional.horizontal_flip(functional.gaussian_blur(image, [17, 17], [1.2, 1.2]))
    expected = functional.normalize(image, MEAN.tolist(), STD.tolist())
    assert_near(finish(crops, everything, RADIUS, MEAN, STD)[0], expected, atol=1e-4)


@pytest.mark.parametrize("size", [1, 2, 8, 17, 64])
def test_loops_and_batches_do_the_same(size):
    crops = torch.from_numpy(noise(150, 3, size, size, seed=size))
    draws = draw_finish(np.random.default_rng(size), 150, AUGMENTATIONS, Strengths(hue=0.5, brightness=0.9))
    loops = finish_image_by_image(crops, draws, RADIUS, MEAN, STD)
    assert_near(loops, finish_in_batches(crops, draws, RADIUS, MEAN, STD), atol=1e-4)


def resized(image, box, size):
    """By the kernel: uint8 (3, size, size)."""
    out = np.zeros((3, size, size), np.uint8)
    fixed = image.view()
    fixed.flags.writeable = False
    crop_kernels.resize_box(fixed, *box, out)
    return out.transpose(0, 2, 1)


def assert_resized_as_by_torchvision(image, box, size):
    left, top, width, height = box
    theirs = functional.resized_crop(
        torch.from_numpy(image).permute(2, 0, 1), top, left, height, width, [size, size], antialias=True
    )
    ours = resized(image, box, size).astype(int)
    assert np.abs(ours - theirs.numpy().astype(int)).max() <= 1, f"{image.shape}, box {box}, to {size}"
    # Torchvision's own arithmetic on integers is rough where many pixels make one; in float32 it is not.
    exact = functional.resized_crop(
        torch.from_numpy(image).permute(2, 0, 1).float(), top, left, height, width, [size, size], antialias=True
    ).numpy()
    assert np.abs(ours - exact).max() < 0.51, f"{image.shape}, box {box}, to {size}"


def test_a_box_is_resized_as_by_torchvision():
    rng = np.random.default_rng(0)
    for _ in range(300):
        height, width, size = (int(side) for side in rng.integers(1, 120, 3))
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        w, h = int(rng.integers(1, width + 1)), int(rng.integers(1, height + 1))
        box = (int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1)), w, h)
        assert_resized_as_by_torchvision(image, box, size)


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(1, 1, 1), (1, 1, 9), (1, 500, 8), (500, 1, 8), (1500, 2000, 32), (7, 2000, 64), (300, 300, 1), (64, 64, 64)],
)
def test_an_extreme_image_is_resized_as_by_torchvision(height, width, size):
    assert_resized_as_by_torchvision(noise(height, width, 3), (0, 0, width, height), size)


def test_crops_are_their_boxes_resized_as_by_torchvision():
    images = [noise(50, 70, 3, seed=1), noise(31, 20, 3, seed=2), noise(1, 1, 3), noise(1, 500, 3), noise(9, 2000, 3)]
    draws = draw_crops(np.random.default_rng(3), len(images))
    crops = crop_views(images, 16, AUGMENTATIONS, Strengths(), draws)
    for side, i in itertools.product(range(2), range(len(images))):
        height, width = images[i].shape[:2]
        box = crop_kernels.crop_box(draws.shapes[side, i], draws.places[side, i], width, height, 0.2, 1.0)
        left, top, w, h = box
        theirs = functional.resized_crop(
            torch.from_numpy(images[i]).permute(2, 0, 1), top, left, h, w, [16, 16], antialias=True
        )
        assert (crops[side, i].int() - theirs.int()).abs().max() <= 1


def test_the_largest_numbers_that_can_be_drawn_stay_inside_the_image():
    last = np.nextafter(1.0, 0.0)
    draws = CropDraws(np.full((2, 1, 10, 2), last), np.full((2, 1, 2), last))
    draws.shapes[..., 0] = 0.1
    left, top, width, height = crop_kernels.crop_box(draws.shapes[0, 0], draws.places[0, 0], 37, 41, 0.2, 1.0)
    assert (left + width, top + height) == (37, 41)


def test_a_kernel_works_where_what_is_compiled_cannot_be_kept():
    names = {}
    exec("def twice(number):\n    return 2 * number", names)  # a function that no file belongs to
    assert kernels.kernel(names["twice"])(21) == 42


def test_kernels_are_compiled_once_however_images_and_draws_lie_in_memory():
    image = noise(30, 40, 3)
    fixed = image.copy()
    fixed.flags.writeable = False
    images = [image, fixed, image[3:, ::2], np.asfortranarray(image)]
    crop_draws = draw_crops(np.random.default_rng(0), 8)
    finish_draws = draw_finish(np.random.default_rng(0), 8, AUGMENTATIONS, Strengths())

    def make(which, mean=MEAN, std=STD):
        crops = crop_views(images, 8, AUGMENTATIONS, Strengths(), crop_draws.part(which))
        for crop in (crops[0], crops[1][torch.tensor([2, 3, 0, 1])], crops[1].contiguous()):
            finish_image_by_image(crop, finish_draws.part(which), RADIUS, mean, std)

    make(slice(0, 4))
    before = [crop_kernels.crop.signatures[:], kernels.finish.signatures[:]]
    make(np.array([7, 1, 4, 2]))
    make(slice(None, None, 2))
    make(slice(3, 7), *torch.stack([MEAN, STD], dim=1).unbind(dim=1))
    assert [crop_kernels.crop.signatures, kernels.finish.signatures] == before
