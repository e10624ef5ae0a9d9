from __future__ import annotations

import numpy as np
import pytest
import torch

from hpt_mlflow.augment.crop import centre_crop, smallest_useful_side
from hpt_mlflow.augment.crop_kernels import crop_box
from hpt_mlflow.augment.draws import draw_crops
from hpt_mlflow.augment.multicrop import NONE, LocalViews, local_strengths, useful_side
from hpt_mlflow.augment.subset import Strengths
from hpt_mlflow.augment.views import crop_views
from hpt_mlflow.data.batches import ViewBatches

PICTURES = [np.random.default_rng(i).integers(0, 256, (40 + i, 50 - i, 3), dtype=np.uint8) for i in range(6)]


@pytest.fixture
def images(open_images):
    return open_images(PICTURES)


def batch_of(images, local, part=None, subset=("crop",)):
    batches = ViewBatches(images, 4, 16, subset, Strengths(), 3, part, local=local)
    (task,) = batches.tasks(range(5, 6))
    return task[1], batches[task]


@pytest.mark.parametrize(
    ("whole", "local"), [((0.4, 1.0), (0.05, 0.4)), ((0.2, 0.8), (0.05, 0.2)), ((0.02, 1.0), (0.02, 0.02))]
)
def test_small_views_show_the_areas_below_those_of_views_of_full_size(whole, local):
    assert local_strengths(Strengths(crop_scale=whole, hue=0.1)) == Strengths(crop_scale=local, hue=0.1)


def test_views_of_full_size_are_the_same_to_the_bit_with_small_ones_and_without(images):
    _, without = batch_of(images, NONE)
    _, beside = batch_of(images, LocalViews(3, 7))
    assert torch.equal(without.crops, beside.crops)
    assert without.local_crops.numel() == 0
    assert beside.local_crops.shape == (3, 4, 3, 7, 7)
    assert beside.local_crops.dtype == torch.uint8
    assert len({tuple(crop.flatten().tolist()) for crop in beside.local_crops[:, 0]}) == 3


def test_small_views_are_drawn_after_those_of_full_size(images):
    indices, batch = batch_of(images, LocalViews(3, 7))
    rng = np.random.default_rng((3, 5))
    pictures = [PICTURES[index] for index in indices]
    expected = crop_views(pictures, 16, ("crop",), Strengths(), draw_crops(rng, 4, 2))
    assert torch.equal(batch.crops, expected)
    small = Strengths(crop_scale=(0.05, 0.2))
    assert torch.equal(batch.local_crops, crop_views(pictures, 7, ("crop",), small, draw_crops(rng, 4, 3)))


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_have_parts_of_the_same_small_crops(images, processes):
    _, whole = batch_of(images, LocalViews(3, 7))
    size = 4 // processes
    parts = [batch_of(images, LocalViews(3, 7), slice(i * size, (i + 1) * size))[1] for i in range(processes)]
    assert torch.equal(torch.cat([part.local_crops for part in parts], dim=1), whole.local_crops)


def test_without_crops_small_views_are_the_whole_image(images):
    indices, batch = batch_of(images, LocalViews(2, 7), subset=("flip",))
    expected = np.stack([centre_crop(PICTURES[i], 7).transpose(2, 0, 1) for i in indices])
    for crops in batch.local_crops:
        assert np.array_equal(crops.numpy(), expected)


@pytest.mark.parametrize(("smallest", "decided_by_small"), [(0.2, False), (0.3, True), (0.4, True), (0.01, False)])
def test_images_keep_the_pixels_that_views_of_both_sizes_need(smallest, decided_by_small):
    strengths = Strengths(crop_scale=(smallest, 1.0))
    side = useful_side(224, strengths, LocalViews(8, 96))
    whole = smallest_useful_side(224, strengths.crop_scale)
    assert (side > whole) == decided_by_small
    assert useful_side(224, strengths, NONE) == whole
    # No crop of either size is enlarged.
    draws = draw_crops(np.random.default_rng(0), 2000, 1)
    for size, scale in ((224, strengths.crop_scale), (96, local_strengths(strengths).crop_scale)):
        boxes = [crop_box(draws.shapes[0, i], draws.places[0, i], side, side, *scale)[2:] for i in range(2000)]
        assert min(map(min, boxes)) >= size - 1
