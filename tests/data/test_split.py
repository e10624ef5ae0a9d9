import numpy as np
import pytest

from hpt_mlflow.data.dataset import Dataset
from hpt_mlflow.data.split import grouped_split, stratified_split, unlabelled_split


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


def split_class_by_class(labels, seed, test):
    """What `stratified_split` has to give, as it was first written: it looks at all labels for each class."""
    rng = np.random.default_rng(seed)
    train, validation, drawn = [], [], []
    given = np.array([], dtype=np.int64) if test is None else np.sort(test)
    for label in np.unique(labels):
        members = rng.permutation(np.setdiff1d(np.flatnonzero(labels == label), given))
        n = len(members)
        tested = 0 if test is not None else round(0.2 * n)
        validated = round((0.2 if test is None else 0.25) * n)
        if n >= 3:
            validated = max(1, validated)
            tested = tested if test is not None else max(1, tested)
        else:
            validated = tested = 0
        drawn += members[:tested].tolist()
        validation += members[tested : tested + validated].tolist()
        train += members[tested + validated :].tolist()
    return sorted(train), sorted(validation), sorted(drawn) if test is None else given.tolist()


@pytest.mark.parametrize("seed", range(30))
def test_the_split_is_the_one_that_registered_runs_have_kept_to(seed):
    rng = np.random.default_rng(seed)
    count, classes = int(rng.integers(1, 300)), int(rng.integers(1, 40))
    labels = rng.integers(-1, classes, count) * int(rng.integers(1, 4))
    # A part of some images, one that has a class to itself, and none.
    for test in (None, rng.permutation(count)[: count // 3], np.flatnonzero(labels == labels[0])):
        found = parts(stratified_split(labels, seed, test))
        for part, expected in zip(found, split_class_by_class(labels, seed, test), strict=True):
            assert part.tolist() == expected
            assert part.dtype == np.int64


def test_no_images_are_split_into_none():
    assert [len(part) for part in parts(stratified_split(np.array([], np.int64), 0))] == [0, 0, 0]


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


def many_labels(images, shares, seed=0):
    return (np.random.default_rng(seed).random((images, len(shares))) < shares).astype(np.uint8)


def groups_of(images, groups, seed=0):
    return np.random.default_rng(seed).integers(0, groups, images)


@pytest.mark.parametrize("images", [0, 1, 2, 3, 4, 5, 17, 200])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_split_of_labels_is_disjoint_and_complete(images, seed):
    for groups in (None, groups_of(images, 7)):
        split = grouped_split(many_labels(images, [0.3, 0.01, 0.9]), seed, groups=groups)
        np.testing.assert_array_equal(np.sort(np.concatenate(parts(split))), np.arange(images))
        assert all(part.dtype == np.int64 and (np.diff(part) > 0).all() for part in parts(split))


@pytest.mark.parametrize("seed", range(5))
def test_every_label_gets_its_share_in_every_part(seed):
    shares = [0.5, 0.3, 0.1, 0.03, 0.9]
    labels = many_labels(2000, shares, seed)
    split = grouped_split(labels, seed)
    for label in range(len(shares)):
        counts = np.array([labels[part, label].sum() for part in parts(split)])
        np.testing.assert_allclose(counts / counts.sum(), [0.6, 0.2, 0.2], atol=0.02)
    np.testing.assert_allclose([len(part) / 2000 for part in parts(split)], [0.6, 0.2, 0.2], atol=0.02)


@pytest.mark.parametrize("seed", range(10))
def test_a_label_of_three_images_among_a_thousand_is_in_every_part(seed):
    labels = many_labels(1000, [0.4, 0.4, 0.0, 0.0])
    rng = np.random.default_rng(seed)
    for label in (2, 3):
        labels[rng.choice(1000, 3, replace=False), label] = 1
    for part in parts(grouped_split(labels, seed)):
        assert labels[part, 2:].any(axis=0).all()


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("own_test", [False, True])
def test_no_group_is_in_two_parts(seed, own_test):
    labels, groups = many_labels(500, [0.3, 0.05], seed), groups_of(500, 60, seed)
    test = np.flatnonzero(groups < 10) if own_test else None
    split = grouped_split(labels, seed, test, groups)
    sets = [set(groups[part]) for part in parts(split)]
    assert len(sets[0] | sets[1] | sets[2]) == sum(map(len, sets))
    assert all(sets)
    if own_test:
        np.testing.assert_array_equal(split.test, test)
        assert len(sets[1]) / (len(sets[0]) + len(sets[1])) == pytest.approx(0.25, abs=0.05)
    else:
        np.testing.assert_allclose([len(s) / 60 for s in sets], [0.6, 0.2, 0.2], atol=0.05)


def test_images_of_a_group_that_the_given_test_part_has_are_left_out():
    groups = np.array([0, 0, 1, 1, 2, 2, 3, 3, 4, 4])
    split = grouped_split(many_labels(10, [0.5]), 0, np.array([0]), groups)
    assert split.test.tolist() == [0]
    assert 1 not in split.seen


def test_labels_of_the_given_test_part_do_not_count_in_the_others():
    labels = many_labels(400, [0.2])
    test = np.arange(200)
    split = grouped_split(labels, 0, test)
    positives = [labels[part].sum() for part in (split.train, split.validation)]
    assert positives[1] / sum(positives) == pytest.approx(0.25, abs=0.02)


def test_a_split_of_groups_depends_on_the_seed_alone():
    labels, groups = many_labels(300, [0.3, 0.1]), groups_of(300, 50)
    first, again, other = (grouped_split(labels, seed, None, groups) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.test, again.test)
    np.testing.assert_array_equal(first.train, again.train)
    assert not np.array_equal(first.test, other.test)


def test_a_dataset_splits_by_its_groups_and_labels():
    names = [str(i) for i in range(90)]
    groups = np.repeat(np.arange(30), 3)
    classes = Dataset("a", "a:a", names, names, np.arange(90) % 2, ("x", "y"), None, groups).split(0)
    labels = Dataset("a", "a:a", names, names, many_labels(90, [0.3]), ("x",), None, groups).split(0)
    for split in (classes, labels):
        assert [len(part) for part in parts(split)] == [54, 18, 18]
        assert sum(len(set(groups[part])) for part in parts(split)) == 30


def test_a_reduced_split_has_so_many_of_what_training_may_see_and_all_of_test():
    split = stratified_split(np.arange(200) % 5, seed=1)
    for count, expected in ((17, 17), (0.25, 40), (1.0, 160), (0.001, 1)):
        reduced = split.reduced(count, seed=3)
        assert len(reduced.seen) == expected
        assert np.isin(reduced.train, split.train).all()
        assert np.isin(reduced.validation, split.validation).all()
        np.testing.assert_array_equal(reduced.test, split.test)
        assert (np.diff(reduced.seen) > 0).all()


def test_a_smaller_choice_lies_in_a_larger_one_and_another_seed_makes_another():
    split = stratified_split(np.arange(200) % 5, seed=1)
    assert np.isin(split.reduced(0.1, seed=3).seen, split.reduced(0.25, seed=3).seen).all()
    assert not np.array_equal(split.reduced(0.1, seed=3).seen, split.reduced(0.1, seed=4).seen)
