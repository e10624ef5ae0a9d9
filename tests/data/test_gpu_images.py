import numpy as np
import pytest
import torch

from hpt_mlflow.augment.multicrop import NONE, LocalViews
from hpt_mlflow.augment.subset import AUGMENTATIONS, Strengths
from hpt_mlflow.data import gpu_images
from hpt_mlflow.data.batches import ViewBatches
from hpt_mlflow.data.gpu_images import GpuImages, images_on_gpu
from hpt_mlflow.data.images import Images
from hpt_mlflow.data.loading import iterate

pytest.importorskip("triton")
# Where there is no GPU, Triton's interpreter runs the kernel.
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
GPU = torch.device("cuda")


@pytest.fixture
def images(open_images):
    """Six of other sizes, one of them a long strip."""
    rng = np.random.default_rng(0)
    shapes = (9, 14), (12, 8), (3, 60), (10, 10), (1, 1), (16, 11)
    return open_images([rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes])


def batches_of(images, on_gpu, subset=AUGMENTATIONS, local=NONE, part=None):
    held = GpuImages(images, images.packed, DEVICE) if on_gpu else None
    return ViewBatches(images, 4, 6, subset, Strengths(), 0, part, local=local, gpu_images=held)


def assert_same(got, expected, differ=0.02):
    """Equal but for rounding, by one level of some pixels."""
    difference = (got.cpu().int() - expected.int()).abs()
    assert got.shape == expected.shape
    assert difference.max() <= 1
    assert (difference > 0).double().mean() < differ


# Pillow, which cuts the central squares, rounds twice.
@pytest.mark.parametrize(("subset", "differ"), [(AUGMENTATIONS, 0.02), (("color",), 0.3)])
def test_crops_are_those_of_the_processor(images, subset, differ):
    batches, held = batches_of(images, False, subset), batches_of(images, True, subset)
    for expected, got in zip(*(iterate(one, range(2), 0, torch.device("cpu")) for one in (batches, held)), strict=True):
        assert got.crops.device.type == DEVICE.type
        assert_same(got.crops, expected.crops, differ)


def test_small_views_and_parts_of_a_batch_are_those_of_the_processor(images):
    local, part = LocalViews(1, 4), slice(2, 4)
    (expected,), (got,) = (
        list(iterate(batches_of(images, on_gpu, local=local, part=part), range(1), 0, torch.device("cpu")))
        for on_gpu in (False, True)
    )
    assert_same(got.crops, expected.crops)
    assert_same(got.local_crops, expected.local_crops)


def test_an_image_that_another_process_found_unreadable_is_replaced_as_on_the_processor(images):
    images.unreadable[3] = "it is damaged"
    (expected,), (got,) = (
        list(iterate(batches_of(images, on_gpu), range(1), 0, torch.device("cpu"))) for on_gpu in (False, True)
    )
    assert list(map(tuple, got.unreadable)) == list(map(tuple, expected.unreadable)) == [(3, "it is damaged")]
    assert_same(got.crops, expected.crops)


def test_images_of_16_bits_and_other_channels_are_cropped(dataset_of):
    rng = np.random.default_rng(0)
    dataset = dataset_of([rng.integers(0, 60_000, (7, 8, 5), dtype=np.uint16) for _ in range(4)])
    images = Images(dataset, np.arange(4), smallest_side=64)
    (expected,), (got,) = (
        list(iterate(batches_of(images, on_gpu), range(1), 0, torch.device("cpu"))) for on_gpu in (False, True)
    )
    assert got.crops.dtype == expected.crops.dtype == torch.uint16
    assert got.crops.shape == expected.crops.shape == (2, 4, 5, 6, 6)
    assert (got.crops.cpu().int() - expected.crops.int()).abs().max() <= 1


def test_images_are_held_by_a_gpu_that_has_room(images, monkeypatch):
    monkeypatch.setattr(gpu_images, "cuts", lambda *_: True)
    monkeypatch.setattr(gpu_images, "GpuImages", lambda *_: "held")
    size = images.packed.numbers().nbytes

    def held(free, trainings=1):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, 10 * free))
        return images_on_gpu(images, GPU, trainings)

    assert held(4 * size) == "held"
    assert held(4 * size - 4) is None
    assert held(4 * size, trainings=2) is None
    assert held(8 * size, trainings=2) == "held"
    assert images_on_gpu(images, torch.device("cpu")) is None
    # What torch has kept for later is free.
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 3 * size)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: size)
    assert held(2 * size) == "held"
    assert held(2 * size - 4) is None
    monkeypatch.setattr(gpu_images, "cuts", lambda *_: False)
    assert held(100 * size) is None


def test_images_that_are_decoded_each_time_are_not_held_by_a_gpu(dataset_of):
    pictures = [np.zeros((4, 4, 3), np.uint8)] * 3
    images = Images(dataset_of(pictures), np.arange(3), smallest_side=4, memory_limit_bytes=0)
    assert images.packed is None
    assert images_on_gpu(images, GPU) is None


def test_a_gpu_without_memory_after_all_holds_none(images, monkeypatch):
    def too_large(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(gpu_images, "cuts", lambda *_: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2**30, 2**30))
    monkeypatch.setattr(gpu_images, "GpuImages", too_large)
    assert images_on_gpu(images, GPU) is None
