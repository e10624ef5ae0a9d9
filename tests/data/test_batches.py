import numpy as np
import pytest
import torch

from hpt_mlflow.augment.subset import AUGMENTATIONS, Strengths
from hpt_mlflow.data.batches import ViewBatches, default_workers, iterate
from hpt_mlflow.data.images import Images
from hpt_mlflow.errors import HptError

CPU = torch.device("cpu")


@pytest.fixture
def images(dataset_of):
    """Eleven noisy images of different sizes, in memory."""
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (10 + i, 20 - i, 3), dtype=np.uint8) for i in range(11)]
    return Images(dataset_of(pictures), np.arange(11), smallest_side=16)


@pytest.fixture
def plain_images(dataset_of):
    """Images that are plainly grey of the value of their index, so that a crop tells where it is from."""

    def build(count, indices=None):
        pictures = [np.full((4, 4, 3), i, np.uint8) for i in range(count)]
        return Images(dataset_of(pictures), np.arange(count) if indices is None else indices, smallest_side=4)

    return build


def batches_of(images, batch_size=3, size=8, subset=AUGMENTATIONS, seed=0):
    return ViewBatches(images, batch_size, size, subset, Strengths(), seed)


def seen(batch):
    """Which plain images a batch holds."""
    return batch.crops[0, :, 0, 0, 0].tolist()


def test_a_batch_has_two_views_of_each_image(images):
    batch = batches_of(images)[0]
    assert batch.crops.shape == (2, 3, 3, 8, 8)
    assert batch.crops.dtype == torch.uint8
    assert not torch.equal(batch.crops[0], batch.crops[1])
    assert batch.unreadable == []


def test_both_views_are_of_the_same_image(plain_images):
    batches = batches_of(plain_images(20), batch_size=5)
    for step in range(8):
        crops = batches[step].crops
        assert torch.equal(crops[0], crops[1])
        assert (crops == crops[:, :, :1, :1, :1]).all()


def test_a_batch_depends_on_seed_and_step_only(images):
    in_order = batches_of(images)
    expected = [in_order[step].crops for step in range(8)]
    other = batches_of(images)
    for step in (7, 0, 4, 3, 4):
        assert torch.equal(other[step].crops, expected[step])


def test_the_global_generators_do_not_decide_a_batch(images):
    torch.manual_seed(0)
    first = batches_of(images)[2].crops
    torch.manual_seed(1)
    assert torch.equal(batches_of(images)[2].crops, first)


def test_another_seed_gives_other_batches(plain_images):
    images = plain_images(20)
    assert seen(batches_of(images, 10, seed=0)[0]) != seen(batches_of(images, 10, seed=1)[0])


def test_another_step_gives_other_crops_of_the_same_image(dataset_of):
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    batches = batches_of(Images(dataset_of([picture]), np.arange(1), smallest_side=16), batch_size=1)
    assert not torch.equal(batches[0].crops, batches[1].crops)


def test_an_epoch_sees_each_image_at_most_once_and_leaves_out_the_incomplete_batch(plain_images):
    batches = batches_of(plain_images(10), batch_size=4)
    assert batches.batches_per_epoch == 2
    for epoch in range(5):
        found = [image for step in (2 * epoch, 2 * epoch + 1) for image in seen(batches[step])]
        assert len(set(found)) == len(found) == 8


def test_an_epoch_without_a_rest_sees_every_image(plain_images):
    batches = batches_of(plain_images(12), batch_size=4)
    assert sorted(image for step in range(3, 6) for image in seen(batches[step])) == list(range(12))


def test_each_epoch_is_shuffled_anew(plain_images):
    batches = batches_of(plain_images(12), batch_size=12)
    orders = {tuple(seen(batches[epoch])) for epoch in range(6)}
    assert len(orders) == 6
    assert tuple(range(12)) not in orders


def test_the_images_left_out_differ_between_epochs(plain_images):
    batches = batches_of(plain_images(10), batch_size=9)
    assert {image for epoch in range(30) for image in seen(batches[epoch])} == set(range(10))


def test_only_the_images_asked_for_are_in_batches(plain_images):
    batches = batches_of(plain_images(20, np.array([3, 5, 8, 13])), batch_size=4)
    assert sorted(seen(batches[0])) == [3, 5, 8, 13]


def test_workers_do_not_change_the_batches(images):
    batches = batches_of(images)
    alone = list(iterate(batches, range(2, 8), 0, CPU))
    together = list(iterate(batches, range(2, 8), 2, CPU))
    assert len(alone) == len(together) == 6
    for step, (first, second) in enumerate(zip(alone, together, strict=True), start=2):
        assert torch.equal(first.crops, second.crops)
        assert torch.equal(first.crops, batches[step].crops)
        assert first.unreadable == second.unreadable == []


def test_workers_report_what_they_could_not_read(dataset_of, plain_files):
    files = plain_files(12)
    images = Images(dataset_of(files), np.arange(12), smallest_side=4, memory_limit_bytes=0)
    files[7].unlink()
    batches = batches_of(images, batch_size=4)
    alone, together = (list(iterate(batches, range(3), workers, CPU)) for workers in (0, 2))
    for first, second in zip(alone, together, strict=True):
        assert torch.equal(first.crops, second.crops)
        assert first.unreadable == second.unreadable
    assert next(index for batch in together for index, _ in batch.unreadable) == 7


def test_a_vanished_image_is_replaced_and_reported(dataset_of, plain_files):
    files = plain_files(12)
    images = Images(dataset_of(files), np.arange(12), smallest_side=4, memory_limit_bytes=0)
    whole = [batches_of(images, batch_size=4)[step] for step in range(3)]
    files[7].unlink()
    batches = [batches_of(images, batch_size=4)[step] for step in range(3)]
    for before, after in zip(whole, batches, strict=True):
        assert after.crops.shape == (2, 4, 3, 8, 8)
        assert 7 not in seen(after)
        if 7 in seen(before):
            assert {index for index, _ in after.unreadable} == {7}
            assert all("FileNotFoundError" in reason for _, reason in after.unreadable)
            kept = [(new, old) for new, old in zip(seen(after), seen(before), strict=True) if old != 7]
            assert all(new == old for new, old in kept)
        else:
            assert after.unreadable == []
            assert torch.equal(after.crops, before.crops)
    assert sum(bool(batch.unreadable) for batch in batches) == 1


def test_when_every_image_vanishes_the_training_ends(dataset_of, plain_files):
    files = plain_files(6)
    images = Images(dataset_of(files), np.arange(6), smallest_side=4, memory_limit_bytes=0)
    for file in files:
        file.unlink()
    with pytest.raises(HptError, match="no image of some can be read any more") as caught:
        batches_of(images, batch_size=2)[0]
    assert "\n" not in str(caught.value)


def test_no_workers_are_started_where_the_cpu_trains_on_images_in_memory(images):
    assert default_workers(images, CPU) == 0
    assert 1 <= default_workers(images, torch.device("cuda")) <= 8


def test_workers_decode_images_that_are_not_in_memory(dataset_of, plain_files):
    images = Images(dataset_of(plain_files(3)), np.arange(3), smallest_side=4, memory_limit_bytes=0)
    assert 1 <= default_workers(images, CPU) <= 8
