import numpy as np
import pytest

from hpt_mlflow.data.split import stratified_split, unlabelled_split


def labels_of(*counts):
    labels = np.repeat(np.arange(len(counts)), counts)
    return np.random.default_rng(0).permutation(labels)


def parts(split):
    return split.train, split.validation, split.test


@pytest.mark.parametrize("counts", [(100, 50, 10), (5,), (1,), (2, 2), (3, 3, 3), (1, 2, 3, 4, 5), (0, 40), (997, 13)])
@pytest.mark.parametrize("seed", [0, 7])
def test_the_parts_are_disjoint_and_complete(counts, seed):
    labels = labels_of(*counts)
    split = stratified_split(labels, seed)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts(split))), np.arange(len(labels)))


@pytest.mark.parametrize("counts", [(100, 50, 10), (1, 2, 3, 4, 5)])
def test_the_parts_are_whole_numbers_in_ascending_order(counts):
    for part in parts(stratified_split(labels_of(*counts), 0)):
        assert part.dtype == np.int64
        assert (np.diff(part) > 0).all()


@pytest.mark.parametrize("count", [5, 10, 50, 100, 1000])
def test_each_class_is_split_sixty_twenty_twenty(count):
    labels = labels_of(count, 2 * count)
    split = stratified_split(labels, 0)
    for label, size in enumerate((count, 2 * count)):
        counts = [int((labels[part] == label).sum()) for part in parts(split)]
        assert counts == [size * 3 // 5, size // 5, size // 5]


@pytest.mark.parametrize("count", range(3, 60))
def test_each_class_of_three_or_more_is_in_every_part(count):
    sizes = [len(part) for part in parts(stratified_split(np.zeros(count, np.int64), 0))]
    assert min(sizes) >= 1
    np.testing.assert_allclose(sizes, np.array([0.6, 0.2, 0.2]) * count, atol=1.1)


@pytest.mark.parametrize("count", [1, 2])
def test_tiny_classes_go_to_train(count):
    labels = labels_of(20, count)
    split = stratified_split(labels, 0)
    assert set(np.flatnonzero(labels == 1)) <= set(split.train)


def test_the_same_seed_gives_the_same_split():
    labels = labels_of(30, 40)
    for first, again in zip(parts(stratified_split(labels, 3)), parts(stratified_split(labels, 3)), strict=True):
        np.testing.assert_array_equal(first, again)


def test_another_seed_gives_another_split_of_the_same_sizes():
    labels = labels_of(30, 40)
    first, other = stratified_split(labels, 0), stratified_split(labels, 1)
    assert not np.array_equal(first.test, other.test)
    assert not np.array_equal(first.validation, other.validation)
    assert [len(part) for part in parts(first)] == [len(part) for part in parts(other)]


def test_the_split_is_drawn_within_the_class_and_not_by_order():
    test = stratified_split(np.zeros(1000, np.int64), 0).test
    assert 400 < test.mean() < 600


def test_a_given_test_part_is_respected():
    labels = labels_of(40, 80)
    given = np.random.default_rng(1).permutation(120)[:30]
    split = stratified_split(labels, 0, given)
    np.testing.assert_array_equal(split.test, np.sort(given))
    np.testing.assert_array_equal(np.sort(np.concatenate(parts(split))), np.arange(120))


def test_what_a_given_test_part_leaves_is_split_three_to_one():
    labels = np.repeat([0, 1], 60)
    given = np.concatenate([np.arange(20), np.arange(60, 80)])
    split = stratified_split(labels, 0, given)
    assert [int((labels[part] == 0).sum()) for part in (split.train, split.validation)] == [30, 10]
    assert [int((labels[part] == 1).sum()) for part in (split.train, split.validation)] == [30, 10]


def test_a_class_that_is_in_the_given_test_part_only_is_nowhere_else():
    labels = np.array([0] * 10 + [1] * 4)
    split = stratified_split(labels, 0, np.arange(10, 14))
    assert set(labels[split.seen]) == {0}
    assert split.test.tolist() == [10, 11, 12, 13]


def test_seen_is_train_and_validation_and_never_test():
    split = stratified_split(labels_of(30, 40), 0)
    assert (np.diff(split.seen) > 0).all()
    assert set(split.seen) == set(split.train) | set(split.validation)
    assert not set(split.seen) & set(split.test)


def test_unlabelled_is_all_train():
    split = unlabelled_split(5)
    assert split.train.tolist() == [0, 1, 2, 3, 4]
    assert split.seen.tolist() == [0, 1, 2, 3, 4]
    assert len(split.validation) == len(split.test) == 0


def test_unlabelled_leaves_out_a_given_test_part():
    split = unlabelled_split(5, np.array([4, 1]))
    assert split.train.tolist() == [0, 2, 3]
    assert split.test.tolist() == [1, 4]
    assert len(split.validation) == 0
