import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.v2 import functional

from hpt_mlflow.augment import crop_kernels
from hpt_mlflow.augment.crop import ASPECT_RATIO, centre_crop, smallest_useful_side
from hpt_mlflow.augment.draws import draw_crops

DRAWS = 3000
SCALE = (0.2, 1.0)


def noise(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def our_boxes(width, height, scale, draws=DRAWS):
    drawn = draw_crops(np.random.default_rng(1), draws, views=1)
    boxes = [
        crop_kernels.crop_box(shapes, place, width, height, *scale)
        for shapes, place in zip(drawn.shapes[0], drawn.places[0], strict=True)
    ]
    left, top, w, h = np.array(boxes).T
    return np.stack([left, top, left + w, top + h], axis=1)


def torchvision_boxes(width, height, scale):
    torch.manual_seed(1)
    image = torch.empty(1, 1, 1).expand(1, height, width)
    drawn = np.array([RandomResizedCrop.get_params(image, list(scale), list(ASPECT_RATIO)) for _ in range(DRAWS)])
    top, left, h, w = drawn.T
    return np.stack([left, top, left + w, top + h], axis=1)


def describe(boxes, width, height):
    left, top, right, bottom = boxes.T
    w, h = right - left, bottom - top
    return {
        "share": w * h / (width * height),
        "ratio": np.log(w / h),
        "across": (left + right) / 2 / width,
        "down": (top + bottom) / 2 / height,
    }


@pytest.mark.parametrize(("width", "height", "scale"), [(200, 200, SCALE), (300, 200, SCALE), (100, 160, (0.08, 0.5))])
def test_boxes_are_distributed_as_those_of_torchvision(width, height, scale):
    ours = describe(our_boxes(width, height, scale), width, height)
    theirs = describe(torchvision_boxes(width, height, scale), width, height)
    quantiles = (0.05, 0.25, 0.5, 0.75, 0.95)
    for name, values in ours.items():
        np.testing.assert_allclose(
            np.quantile(values, quantiles), np.quantile(theirs[name], quantiles), atol=0.035, err_msg=name
        )
        assert values.mean() == pytest.approx(theirs[name].mean(), abs=0.02), name


@pytest.mark.parametrize(("width", "height"), [(1, 1), (2, 3), (50, 40), (1, 300), (300, 1), (400, 7)])
def test_boxes_lie_inside_the_image_and_hold_a_pixel(width, height):
    left, top, right, bottom = our_boxes(width, height, SCALE, draws=200).T
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (right <= width).all()
    assert (bottom <= height).all()
    assert (right > left).all()
    assert (bottom > top).all()


@pytest.mark.parametrize(("width", "height"), [(1000, 30), (30, 1000), (2000, 3)])
def test_a_strip_that_no_draw_fits_gets_the_central_box_of_torchvision(width, height):
    ours, theirs = our_boxes(width, height, (0.9, 1.0), draws=3), torchvision_boxes(width, height, (0.9, 1.0))[:3]
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(("side", "size"), [(1500, 8), (700, 33), (40, 39), (3, 64)])
def test_resizing_is_that_of_pillow(side, size):
    image = noise(side, side)
    expected = Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(centre_crop(image, size), expected)


@pytest.mark.parametrize("value", [0, 77, 255])
def test_a_plain_image_stays_plain(value):
    image = np.full((1200, 900, 3), value, dtype=np.uint8)
    assert (centre_crop(image, 8) == value).all()


def test_cropping_leaves_the_image_as_it_was():
    image = noise(30, 30)
    before = image.copy()
    centre_crop(image, 8)
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize(("side", "size", "resize_to"), [(40, 16, 16), (40, 16, 20), (9, 16, 24), (16, 16, 16)])
def test_the_centre_crop_of_a_square_is_that_of_torchvision(side, size, resize_to):
    image = noise(side, side)
    resized = functional.resize(Image.fromarray(image), [resize_to], InterpolationMode.BILINEAR)
    np.testing.assert_array_equal(centre_crop(image, size, resize_to), functional.center_crop(resized, [size]))


def test_the_shorter_side_is_resized_to_the_crop_where_nothing_else_is_said():
    image = noise(24, 24)
    np.testing.assert_array_equal(centre_crop(image, 16), centre_crop(image, 16, resize_to=16))


@pytest.mark.parametrize("shape", [(40, 80), (81, 40)])
def test_the_centre_crop_of_a_rectangle_is_that_of_torchvision_but_for_rounding(shape):
    height, width = shape
    ramp = np.add.outer(np.linspace(0, 120, height), np.linspace(0, 120, width))
    image = np.repeat(ramp[:, :, None], 3, axis=2).astype(np.uint8)
    resized = functional.resize(Image.fromarray(image), [20], InterpolationMode.BILINEAR)
    expected = np.asarray(functional.center_crop(resized, [20])).astype(int)
    assert np.abs(centre_crop(image, 20).astype(int) - expected).max() <= 4


def test_the_centre_crop_of_a_strip_is_its_middle():
    image = np.zeros((4, 100, 3), dtype=np.uint8)
    image[:, 48:52] = 255
    assert (centre_crop(image, 4) == 255).all()


@pytest.mark.parametrize(("size", "scale"), [(32, (0.2, 1.0)), (96, (0.08, 1.0)), (17, (0.5, 0.5))])
@pytest.mark.parametrize("stretch", [1.0, 1.3, 4.0])
def test_no_crop_of_an_image_of_the_smallest_useful_side_is_enlarged(size, scale, stretch):
    side = smallest_useful_side(size, scale)
    for width, height in [(side, round(side * stretch)), (round(side * stretch), side)]:
        left, top, right, bottom = our_boxes(width, height, scale, draws=400).T
        assert (right - left).min() >= size
        assert (bottom - top).min() >= size


def test_a_smaller_side_than_the_smallest_useful_one_would_enlarge_some_crops():
    side = smallest_useful_side(96, (0.2, 0.2)) * 9 // 10
    left, _, right, _ = our_boxes(side, side, (0.2, 0.2)).T
    assert (right - left).min() < 96
