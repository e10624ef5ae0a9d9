import pytest
import torch
from torchvision.transforms.v2 import functional

from hpt_mlflow.augment import color

FACTORS = [0.0, 0.4, 1.0, 1.7]
HUES = [-0.5, -0.23, 0.0, 0.1, 0.5]


def blend_with(grayness, mean_grayness):
    def blend(images, factor):
        return color.blend(images, factor, torch.full_like(factor, grayness), torch.full_like(factor, mean_grayness))

    return blend


ADJUSTMENTS = [
    (blend_with(0, 0), functional.adjust_brightness, FACTORS),
    (blend_with(0, 1), functional.adjust_contrast, FACTORS),
    (blend_with(1, 0), functional.adjust_saturation, FACTORS),
    (color.adjust_hue, functional.adjust_hue, HUES),
]
BY_NAME = pytest.mark.parametrize(
    ("ours", "theirs", "values"), ADJUSTMENTS, ids=[theirs.__name__ for _, theirs, _ in ADJUSTMENTS]
)


def images(n, height=5, width=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    batch = torch.rand(n, 3, height, width, generator=generator)
    batch[:, :, 0, 0] = 0
    batch[:, :, 0, 1] = 1
    batch[:, :, 0, 2] = torch.tensor([1.0, 0.0, 0.0])
    batch[:, :, 0, 3] = torch.tensor([0.0, 1.0, 0.0])
    batch[:, :, 0, 4] = torch.tensor([0.0, 0.0, 1.0])
    batch[:, :, 0, 5] = torch.tensor([1.0, 1.0, 0.0])
    batch[:, :, 0, 6] = 0.5
    return batch


@BY_NAME
def test_an_adjustment_is_that_of_torchvision(ours, theirs, values):
    for value in values:
        batch = images(2)
        torch.testing.assert_close(
            ours(batch.clone(), torch.full((2,), value)), theirs(batch, value), atol=1e-5, rtol=0, msg=f"at {value}"
        )


@BY_NAME
def test_each_image_is_adjusted_by_its_own_factor(ours, theirs, values):
    batch = images(len(values))
    expected = torch.stack([theirs(image, value) for image, value in zip(batch, values, strict=True)])
    torch.testing.assert_close(ours(batch.clone(), torch.tensor(values)), expected, atol=1e-5, rtol=0)


@BY_NAME
def test_the_neutral_factor_changes_nothing(ours, theirs, values):
    batch = images(2)
    neutral = torch.full((2,), 0.0 if ours is color.adjust_hue else 1.0)
    torch.testing.assert_close(ours(batch.clone(), neutral), batch, atol=1e-6, rtol=0)


@BY_NAME
def test_an_adjustment_leaves_its_input_as_it_was(ours, theirs, values):
    batch = images(2)
    before = batch.clone()
    ours(batch, torch.tensor(values[:2]))
    assert torch.equal(batch, before)


@BY_NAME
def test_no_images_give_no_images(ours, theirs, values):
    assert ours(torch.empty(0, 3, 4, 4), torch.empty(0)).shape == (0, 3, 4, 4)


def test_grey_is_that_of_torchvision():
    batch = images(3)
    torch.testing.assert_close(
        color.rgb_to_grayscale(batch), functional.rgb_to_grayscale(batch, num_output_channels=1), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("turn", HUES)
def test_grey_images_have_no_hue_to_turn(turn):
    grey = torch.linspace(0, 1, 12).view(1, 1, 3, 4).expand(2, 3, 3, 4).contiguous()
    turned = color.adjust_hue(grey, torch.full((2,), turn))
    torch.testing.assert_close(turned, grey, atol=1e-6, rtol=0)


def test_a_third_of_the_circle_turns_red_into_green():
    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
    turned = color.adjust_hue(red, torch.tensor([1 / 3])).flatten()
    torch.testing.assert_close(turned, torch.tensor([0.0, 1.0, 0.0]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("sigma", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("radius", [1, 3, 4])
def test_blur_is_that_of_torchvision(sigma, radius):
    batch = images(2, height=9, width=8)
    kernel = 2 * radius + 1
    torch.testing.assert_close(
        color.gaussian_blur(batch, torch.full((2,), sigma), radius),
        functional.gaussian_blur(batch, [kernel, kernel], [sigma, sigma]),
        atol=1e-5,
        rtol=0,
    )


def test_each_image_is_blurred_by_its_own_sigma():
    sigmas = [0.1, 0.8, 2.0]
    batch = images(3, height=20, width=18)
    expected = [
        functional.gaussian_blur(image, [17, 17], [sigma, sigma]) for image, sigma in zip(batch, sigmas, strict=True)
    ]
    blurred = color.gaussian_blur(batch, torch.tensor(sigmas), radius=8)
    torch.testing.assert_close(blurred, torch.stack(expected), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(3, 12), (2, 2), (1, 5), (1, 1)])
def test_blur_of_an_image_smaller_than_the_radius_is_cut_off_at_its_border(height, width):
    batch = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    kernel = [2 * min(8, width - 1) + 1, 2 * min(8, height - 1) + 1]
    torch.testing.assert_close(
        color.gaussian_blur(batch, torch.full((2,), 1.5), radius=8),
        functional.gaussian_blur(batch, kernel, [1.5, 1.5]),
        atol=1e-5,
        rtol=0,
    )


def test_blur_keeps_a_plain_image_plain():
    plain = torch.full((2, 3, 6, 9), 0.7)
    torch.testing.assert_close(color.gaussian_blur(plain, torch.tensor([0.3, 2.0]), radius=8), plain)


def test_blur_works_on_views_of_other_memory_layouts():
    batch = images(2, height=6, width=7)
    sigma = torch.tensor([0.5, 1.0])
    strided = batch.to(memory_format=torch.channels_last)
    torch.testing.assert_close(color.gaussian_blur(strided, sigma, 3), color.gaussian_blur(batch, sigma, 3))
