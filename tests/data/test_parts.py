import pytest

from hpt_mlflow.data.parts import TEST, TRAIN, UNLABELLED, VALIDATION, has_parts, held_out, part_of, parts_of


@pytest.mark.parametrize(
    ("part", "names"),
    [
        (TRAIN, "train Train TRAINING training_set train-images train2017 train_set_2014 trainset train_data"),
        (VALIDATION, "val valid validation Val2017 dev development eval evaluation validation_set val-images"),
        (TEST, "test Testing test_set test-images testset test2017 holdout hold_out"),
        (UNLABELLED, "unlabeled unlabelled unlabeled2017 Unlabeled_Images"),
    ],
)
def test_common_names_of_parts_are_known(part, names):
    assert {part_of(name) for name in names.split()} == {part}


@pytest.mark.parametrize(
    "name", ["", "trainer", "trains", "train station", "test tube", "tests", "protest", "value", "valve", "train1", "1"]
)
def test_other_words_are_no_parts(name):
    assert part_of(name) is None


def test_names_that_differ_in_the_part_alone_are_parts():
    assert parts_of(["birds_train", "birds_test"]) == {"birds_train": TRAIN, "birds_test": TEST}
    assert parts_of(["train-birds-v2", "val-birds-v2"]) == {"train-birds-v2": TRAIN, "val-birds-v2": VALIDATION}


@pytest.mark.parametrize(
    "names",
    [
        ["train station", "test tube"],
        ["birds_train", "cats_test"],
        ["birds_train", "birds_test", "dogs"],
        ["birds_train_test", "birds_test"],
        ["cat", "dog"],
    ],
)
def test_names_that_differ_in_more_are_none(names):
    assert set(parts_of(names).values()) == {None}


def test_train_needs_company_to_be_a_part():
    assert has_parts([TRAIN, TEST])
    assert has_parts([TRAIN, VALIDATION, None])
    assert has_parts([TRAIN])
    assert has_parts([TRAIN, UNLABELLED])
    assert not has_parts([TRAIN, None])
    assert not has_parts([TRAIN, UNLABELLED, None])
    assert not has_parts([VALIDATION, TEST])
    assert not has_parts([])


def test_test_is_held_out_and_else_validation():
    assert held_out([TRAIN, VALIDATION, TEST]) == TEST
    assert held_out([TRAIN, VALIDATION]) == VALIDATION
    assert held_out([TRAIN, UNLABELLED, None]) is None
