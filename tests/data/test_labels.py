import numpy as np
import pytest

from hpt_mlflow.data.dataset import Dataset
from hpt_mlflow.data.labels import check_labels, number_classes
from hpt_mlflow.data.split import Split
from hpt_mlflow.errors import HptError


def dataset_of(labels, classes, test=None, groups=None):
    labels = None if labels is None else np.asarray(labels)
    if labels is not None:
        labels = labels.astype(np.uint8 if labels.ndim == 2 else np.int64)
    names = [str(i) for i in range(0 if labels is None else len(labels))]
    test = None if test is None else np.asarray(test)
    return Dataset("birds", "csv:birds", names, names, labels, classes, test, groups)


def assert_refused(dataset, split, *words):
    with pytest.raises(HptError) as caught:
        check_labels(dataset, split)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def split_of(*parts):
    return Split(*(np.array(part, dtype=np.int64) for part in parts))


def test_classes_are_numbered_in_the_order_of_their_names_or_numbers():
    labels, classes = number_classes(["b", "a", "b"])
    assert (labels.tolist(), classes) == ([1, 0, 1], ("a", "b"))
    labels, classes = number_classes(["10", "9", "-1"])
    assert (labels.tolist(), classes) == ([2, 1, 0], ("-1", "9", "10"))


def test_good_classes_pass():
    dataset = dataset_of([0, 1] * 10, ("a", "b"))
    np.testing.assert_array_equal(check_labels(dataset, dataset.split(0)), dataset.labels)


def test_good_labels_pass():
    dataset = dataset_of([[0, 1], [1, 0], [1, 1], [0, 0]] * 10, ("a", "b"))
    np.testing.assert_array_equal(check_labels(dataset, dataset.split(0)), dataset.labels)


def test_no_labels_are_refused():
    assert_refused(dataset_of(None, ()), split_of([], [], []), "csv:birds has no labels")


def test_one_class_is_refused():
    assert_refused(dataset_of([0] * 9, ("a",)), split_of(range(3), range(3, 6), range(6, 9)), "one class, 'a'")


def test_a_class_that_is_too_small_to_be_split_is_refused():
    dataset = dataset_of([0] * 9 + [1] * 2, ("a", "b"))
    assert_refused(dataset, dataset.split(0), "these classes of birds have too few images: 'b' (2)", "--leave-out b")


def test_a_class_that_only_the_given_test_part_has_is_refused():
    dataset = dataset_of([0] * 9 + [1] * 9 + [2] * 4, ("a", "b", "c"), test=[0, 9, 18, 19, 20, 21])
    assert_refused(dataset, dataset.split(0), "'c'", "in test but not in train", "--leave-out c")


def test_a_given_test_part_of_one_class_is_refused():
    dataset = dataset_of([0] * 9 + [1] * 9, ("a", "b"), test=[0, 1])
    assert_refused(dataset, dataset.split(0), "the test part of birds has one class only, 'a'")


def test_a_train_part_of_one_class_is_refused():
    dataset = dataset_of([0] * 9 + [1] * 9, ("a", "b"), test=range(9, 18))
    split = split_of([0, 1], [2], [3])
    assert_refused(dataset, split, "the train part of birds has one class only")


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_label_that_no_image_has_is_refused(part):
    labels = np.array([[0, 1], [1, 0]] * 6)
    rows = {"train": range(4), "validation": range(4, 8), "test": range(8, 12)}
    labels[list(rows[part]), 1] = 0
    split = split_of(*rows.values())
    assert_refused(dataset_of(labels, ("a", "b")), split, f"no image in the {part} part", "label 'b'", "?labels=A,B")


def test_a_label_that_all_images_have_is_refused():
    labels = np.array([[0, 1], [1, 1]] * 6)
    dataset = dataset_of(labels, ("a", "b"))
    assert_refused(dataset, dataset.split(0), "all images in the train part", "alike in the label 'b'")


def test_validation_may_lack_a_label_but_not_all():
    labels = np.array([[0, 1], [1, 0]] * 6)
    labels[4:8, 1] = 0
    split = split_of(range(4), range(4, 8), range(8, 12))
    check_labels(dataset_of(labels, ("a", "b")), split)
    labels[4:8] = 0
    assert_refused(dataset_of(labels, ("a", "b")), split, "all images in the validation part")


@pytest.mark.parametrize("labels", [[0, 1] * 6, [[0, 1], [1, 0]] * 6])
def test_a_part_without_images_is_refused(labels):
    split = split_of(range(4), [], range(8, 12))
    assert_refused(
        dataset_of(labels, ("a", "b")), split, "birds leaves no readable images for validation", "add images"
    )


def test_names_that_unicode_composes_in_two_ways_are_one_class():
    labels, classes = number_classes(["caf\u00e9", "z", "cafe\u0301", "\udcff"])
    assert (labels.tolist(), classes) == ([0, 1, 0, 2], ("caf\u00e9", "z", "\\udcff"))
