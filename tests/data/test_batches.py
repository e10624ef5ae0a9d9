import numpy as np
import pytest
import torch

from hpt_mlflow.augment.subset import AUGMENTATIONS, Strengths
from hpt_mlflow.data.batches import ViewBatches
from hpt_mlflow.data.images import Images
from hpt_mlflow.data.loading import iterate
from hpt_mlflow.errors import HptError

CPU = torch.device("cpu")


@pytest.fixture
def plain_images(dataset_of):
    """Images that are plainly grey of the value of their index, so that a crop tells where it is from."""

    def build(count, indices=None):
        pictures = [np.full((4, 4, 3), i, np.uint8) for i in range(count)]
        return Images(dataset_of(pictures), np.arange(count) if indices is None else indices, smallest_side=4)

    return build


def batches_of(images, batch_size=3, size=8, subset=AUGMENTATIONS, seed=0):
    return ViewBatches(images, batch_size, size, subset, Strengths(), seed)


def batch_at(batches, step):
    (task,) = batches.tasks(range(step, step + 1))
    return batches[task]


def seen(batch):
    """Which plain images a batch holds."""
    return batch.crops[0, :, 0, 0, 0].tolist()


def test_a_batch_has_two_views_of_each_image(images):
    batch = batch_at(batches_of(images), 0)
    assert batch.crops.shape == (2, 3, 3, 8, 8)
    assert batch.crops.dtype == torch.uint8
    assert not torch.equal(batch.crops[0], batch.crops[1])
    assert batch.unreadable == []


def test_both_views_are_of_the_same_image(plain_images):
    batches = batches_of(plain_images(20), batch_size=5)
    for step in range(8):
        crops = batch_at(batches, step).crops
        assert torch.equal(crops[0], crops[1])
        assert (crops == crops[:, :, :1, :1, :1]).all()


def test_a_batch_depends_on_seed_and_step_only(images):
    in_order = batches_of(images)
    expected = [batch_at(in_order, step).crops for step in range(8)]
    other = batches_of(images)
    for step in (7, 0, 4, 3, 4):
        assert torch.equal(batch_at(other, step).crops, expected[step])


def test_the_global_generators_do_not_decide_a_batch(images):
    torch.manual_seed(0)
    first = batch_at(batches_of(images), 2).crops
    torch.manual_seed(1)
    assert torch.equal(batch_at(batches_of(images), 2).crops, first)


def test_another_seed_gives_other_batches(plain_images):
    images = plain_images(20)
    assert seen(batch_at(batches_of(images, 10, seed=0), 0)) != seen(batch_at(batches_of(images, 10, seed=1), 0))


def test_another_step_gives_other_crops_of_the_same_image(dataset_of):
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    batches = batches_of(Images(dataset_of([picture]), np.arange(1), smallest_side=16), batch_size=1)
    assert not torch.equal(batch_at(batches, 0).crops, batch_at(batches, 1).crops)


def test_an_epoch_sees_each_image_at_most_once_and_leaves_out_the_incomplete_batch(plain_images):
    batches = batches_of(plain_images(10), batch_size=4)
    assert [len(batch.crops[0]) for batch in iterate(batches, range(4), 0, CPU)] == [4] * 4
    for epoch in range(5):
        found = [image for step in (2 * epoch, 2 * epoch + 1) for image in seen(batch_at(batches, step))]
        assert len(set(found)) == len(found) == 8


def test_an_epoch_without_a_rest_sees_every_image(plain_images):
    batches = batches_of(plain_images(12), batch_size=4)
    assert sorted(image for step in range(3, 6) for image in seen(batch_at(batches, step))) == list(range(12))


def test_each_epoch_is_shuffled_anew(plain_images):
    batches = batches_of(plain_images(12), batch_size=12)
    orders = {tuple(seen(batch_at(batches, epoch))) for epoch in range(6)}
    assert len(orders) == 6
    assert tuple(range(12)) not in orders


def test_the_images_left_out_differ_between_epochs(plain_images):
    batches = batches_of(plain_images(10), batch_size=9)
    assert {image for epoch in range(30) for image in seen(batch_at(batches, epoch))} == set(range(10))


def test_only_the_images_asked_for_are_in_batches(plain_images):
    batches = batches_of(plain_images(20, np.array([3, 5, 8, 13])), batch_size=4)
    assert sorted(seen(batch_at(batches, 0))) == [3, 5, 8, 13]


def test_a_vanished_image_is_replaced_and_reported(dataset_of, plain_files):
    files = plain_files(12)
    images = Images(dataset_of(files), np.arange(12), smallest_side=4, memory_limit_bytes=0)
    whole = [batch_at(batches_of(images, batch_size=4), step) for step in range(3)]
    files[7].unlink()
    batches = [batch_at(batches_of(images, batch_size=4), step) for step in range(3)]
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
        batch_at(batches_of(images, batch_size=2), 0)
    assert "\n" not in str(caught.value)


def parts_of(images, processes, batch_size=12):
    """What each of several processes sees of the same batches."""
    whole = batches_of(images, batch_size)
    share = batch_size // processes
    parts = [slice(rank * share, (rank + 1) * share) for rank in range(processes)]
    return whole, [ViewBatches(images, batch_size, 8, AUGMENTATIONS, Strengths(), 0, part) for part in parts]


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
def test_the_parts_of_all_processes_are_the_batch(dataset_of, processes):
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (10 + i, 40 - i, 3), dtype=np.uint8) for i in range(30)]
    whole, parts = parts_of(Images(dataset_of(pictures), np.arange(30), smallest_side=16), processes)
    for step in range(5):
        batch = batch_at(whole, step)
        shares = [batch_at(part, step) for part in parts]
        assert torch.equal(torch.cat([share.crops for share in shares], dim=1), batch.crops)
        assert len({len(share.crops[0]) for share in shares}) == 1
    assert [list(map(step_and_images, part.tasks(range(3, 9)))) for part in parts] == [
        [(step, indices[part.part]) for step, indices in map(step_and_images, whole.tasks(range(3, 9)))]
        for part in parts
    ]


def step_and_images(task):
    return task[0], task[1].tolist()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_vanished_image_has_the_same_replacement_in_every_number_of_processes(dataset_of, plain_files, workers):
    files = plain_files(30)
    images = Images(dataset_of(files), np.arange(30), smallest_side=4, memory_limit_bytes=0)
    for gone in (2, 3, 17):
        files[gone].unlink()
    whole, parts = parts_of(images, 2)
    unreadable = set()
    runs = [iterate(batches, range(6), workers, CPU) for batches in (whole, *parts)]
    for batch, *shares in zip(*runs, strict=True):
        assert torch.equal(torch.cat([share.crops for share in shares], dim=1), batch.crops)
        assert [one for share in shares for one in share.unreadable] == batch.unreadable
        unreadable |= {index for index, _ in batch.unreadable}
    assert unreadable == {2, 3, 17}
