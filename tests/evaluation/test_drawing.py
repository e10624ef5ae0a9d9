from __future__ import annotations

import numpy as np
import pytest

from hpt_mlflow.errors import HptError
from hpt_mlflow.evaluation.drawing import draw_labels

CLASSES = np.array([0, 1, 2] * 20)
LABELS = np.stack([CLASSES > 0, CLASSES == 1], axis=1).astype(np.uint8)


@pytest.mark.parametrize("count", [4, 10, 40, 99, 1.0, 0.1, 0.5])
@pytest.mark.parametrize("seed", range(3))
def test_the_wanted_number_of_images_is_drawn_with_one_per_class(count, seed):
    labels = np.random.default_rng(9).permutation(np.repeat([0, 1, 2, 5], [60, 30, 8, 2]))
    drawn = draw_labels(labels, count, seed)
    assert len(drawn) == (count if isinstance(count, int) else round(count * 100))
    assert (np.diff(drawn) > 0).all()
    assert drawn.dtype == np.int64
    assert set(labels[drawn]) == {0, 1, 2, 5}


def test_classes_are_drawn_in_proportion():
    labels = np.repeat([0, 1, 2], [600, 300, 100])
    counts = np.bincount(labels[draw_labels(labels, 100, 0)])
    np.testing.assert_allclose(counts, [60, 30, 10], atol=1)


def test_more_labels_than_there_are_means_all():
    assert draw_labels(CLASSES, 1000, 0).tolist() == list(range(60))
    assert draw_labels(CLASSES, 1.0, 0).tolist() == list(range(60))
    assert draw_labels(LABELS, 1000, 0).tolist() == list(range(60))


def test_the_seed_decides_what_is_drawn():
    for truth in (CLASSES, LABELS):
        assert draw_labels(truth, 9, 1).tolist() == draw_labels(truth, 9, 1).tolist()
        assert draw_labels(truth, 9, 1).tolist() != draw_labels(truth, 9, 2).tolist()


def test_every_image_of_a_class_may_be_drawn():
    counts = sum(np.bincount(draw_labels(CLASSES, 6, seed), minlength=60) for seed in range(300))
    # Each of the 60 images is drawn with a probability of 0.1: 30 times, give or take 5.2.
    assert counts.min() > 10
    assert counts.max() < 55


@pytest.mark.parametrize("seed", range(5))
def test_an_image_with_each_label_is_drawn(seed):
    labels = (np.random.default_rng(0).random((300, 6)) < [0.5, 0.2, 0.1, 0.02, 0.01, 0]).astype(np.uint8)
    drawn = draw_labels(labels, 8, seed)
    assert len(set(drawn)) == 8
    np.testing.assert_array_equal(labels[drawn].any(axis=0), labels.any(axis=0))


@pytest.mark.parametrize(
    ("labels", "count", "words"),
    [
        (CLASSES, 2, "2 images cannot hold one of each of 3 classes; ask for 3"),
        (CLASSES, 0.01, "1 images cannot hold one of each of 3"),
        (CLASSES, 0, "0 is not a positive number"),
        (CLASSES, 1.5, "1.5 is not a fraction"),
        (CLASSES, 0.0, "0.0 is not a fraction"),
        (np.eye(4, dtype=np.uint8), 3, "3 images cannot hold one with each of 4 labels; ask for 4"),
    ],
)
def test_numbers_that_cannot_be_drawn_are_refused(labels, count, words):
    with pytest.raises(HptError, match=words) as caught:
        draw_labels(labels, count, 0)
    assert "\n" not in str(caught.value)
