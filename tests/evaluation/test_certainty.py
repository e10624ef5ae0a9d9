import math

import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from hpt_mlflow.evaluation import certainty


def classes_example(seed=0, count=300, classes=4):
    rng = np.random.default_rng(seed)
    truth = rng.integers(classes, size=count)
    probabilities = rng.random((count, classes)).astype(np.float32)
    probabilities[np.arange(count), truth] += 0.4
    return truth, probabilities


def labels_example(seed=0, count=250, labels=3):
    rng = np.random.default_rng(seed)
    truth = (rng.random((count, labels)) < 0.3).astype(np.uint8)
    # Rounded, so that there are ties.
    return truth, np.round(rng.random((count, labels)) + 0.4 * truth, 1).astype(np.float32)


def resampled(figure, count, resamples, seed):
    """A bootstrap that draws the images themselves, one resample after the other."""
    rng = np.random.default_rng(seed)
    return np.array([figure(rng.integers(count, size=count)) for _ in range(resamples)])


def test_the_interval_of_balanced_accuracy_is_that_of_drawing_the_images_themselves():
    truth, probabilities = classes_example()
    answers = probabilities.argmax(axis=1)
    interval = certainty.test_intervals(truth, probabilities, "abcd", resamples=6000)["balanced_accuracy"]

    def mean_recall(images):
        return np.mean([(answers[images] == c)[truth[images] == c].mean() for c in range(4)])

    drawn = resampled(mean_recall, len(truth), 6000, seed=1)
    assert interval.value == pytest.approx(balanced_accuracy_score(truth, answers))
    np.testing.assert_allclose(interval[1:], np.percentile(drawn, [2.5, 97.5]), atol=0.005)


def test_the_interval_of_accuracy_is_that_of_scipy():
    truth, probabilities = classes_example()
    right = (probabilities.argmax(axis=1) == truth).astype(float)
    expected = scipy.stats.bootstrap(
        (right,), np.mean, n_resamples=6000, method="percentile", random_state=np.random.default_rng(1)
    ).confidence_interval
    interval = certainty.test_intervals(truth, probabilities, "abcd", resamples=6000)["accuracy"]
    assert interval.value == pytest.approx(right.mean())
    np.testing.assert_allclose(interval[1:], expected, atol=0.005)


@pytest.mark.parametrize("seed", range(5))
def test_the_weighted_auroc_is_that_of_scikit_learn_ties_included(seed):
    truth, scores = labels_example(seed)
    weights = np.random.default_rng(seed).integers(0, 4, size=(6, len(truth))).astype(np.int32)
    areas = certainty._ranked(truth[:, 0], scores[:, 0])(weights)
    expected = [roc_auc_score(truth[:, 0], scores[:, 0], sample_weight=row) for row in weights]
    np.testing.assert_allclose(areas, expected, rtol=1e-12)


def test_intervals_of_labels_are_those_of_drawing_the_images_themselves():
    truth, scores = labels_example()
    found = certainty.test_intervals(truth, scores, "xyz", resamples=3000)
    assert list(found) == ["auroc", "auroc/x", "auroc/y", "auroc/z"]
    drawn = resampled(lambda images: roc_auc_score(truth[images], scores[images]), len(truth), 1000, seed=1)
    assert found["auroc"].value == pytest.approx(roc_auc_score(truth, scores))
    np.testing.assert_allclose(found["auroc"][1:], np.percentile(drawn, [2.5, 97.5]), atol=0.008)
    assert found["auroc/y"].value == pytest.approx(roc_auc_score(truth[:, 1], scores[:, 1]))
    assert found["auroc/y"].low < found["auroc/y"].value < found["auroc/y"].high


def test_chunks_of_resamples_give_what_one_chunk_gives(monkeypatch):
    truth, scores = labels_example()
    whole = certainty.test_intervals(truth, scores, "xyz", resamples=100)
    monkeypatch.setattr(certainty, "CHUNK_BYTES", 7 * 4 * len(truth))
    assert certainty.test_intervals(truth, scores, "xyz", resamples=100) == whole


def test_the_same_seed_gives_the_same_intervals_and_another_others():
    example = classes_example()
    assert certainty.test_intervals(*example, "abcd") == certainty.test_intervals(*example, "abcd")
    assert certainty.test_intervals(*example, "abcd") != certainty.test_intervals(*example, "abcd", seed=1)


def test_a_label_that_no_image_has_is_left_out():
    truth, scores = labels_example()
    truth[:, 1] = 0
    found = certainty.test_intervals(truth, scores, "xyz", resamples=200)
    assert list(found) == ["auroc", "auroc/x", "auroc/z"]
    assert found["auroc"].value == pytest.approx((found["auroc/x"].value + found["auroc/z"].value) / 2)


def test_a_label_of_one_image_is_left_out_of_the_resamples_without_that_image():
    truth, scores = labels_example()
    truth[:, 1] = 0
    truth[7, 1] = 1
    found = certainty.test_intervals(truth, scores, "xyz", resamples=500)
    assert all(math.isfinite(number) for interval in found.values() for number in interval)


def test_a_class_of_one_image_is_left_out_of_the_resamples_without_that_image():
    truth = np.array([0] * 30 + [1])
    probabilities = np.tile(np.float32([0.9, 0.1]), (31, 1))
    balanced = certainty.test_intervals(truth, probabilities, "ab", resamples=500)["balanced_accuracy"]
    assert balanced == (0.5, 0.5, 1.0)


def test_classes_that_the_test_images_have_not_do_no_harm():
    truth, probabilities = classes_example(classes=4)
    wider = np.concatenate([probabilities, np.zeros((len(truth), 3), np.float32)], axis=1)
    assert certainty.test_intervals(truth, wider, "abcdefg") == certainty.test_intervals(truth, probabilities, "abcd")


def test_the_interval_covers_the_true_accuracy_in_95_of_100_experiments():
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(400):
        right = rng.random(250) < 0.8
        answers = np.stack([~right, right], axis=1).astype(np.float32)
        interval = certainty.test_intervals(np.ones(250, int), answers, "ab", resamples=400, seed=seed)["accuracy"]
        covered += interval.low <= 0.8 <= interval.high
    # Two standard errors of 400 experiments, and what percentile intervals fall short by.
    assert 0.915 <= covered / 400 <= 0.975


def worse(truth, probabilities, share, seed=3):
    """The same predictions, a share of them turned away from the truth."""
    rng = np.random.default_rng(seed)
    turned = probabilities.copy()
    for image in np.flatnonzero(rng.random(len(truth)) < share):
        turned[image, truth[image]] = -1
    return turned


def test_paired_tells_the_better_model_and_agrees_with_drawing_the_images_themselves():
    truth, probabilities = classes_example()
    other = worse(truth, probabilities, 0.1)
    found = certainty.paired(truth, other, probabilities, resamples=6000)
    a, b = other.argmax(axis=1) == truth, probabilities.argmax(axis=1) == truth
    drawn = resampled(lambda images: b[images].mean() - a[images].mean(), len(truth), 6000, seed=1)
    assert found.primary.name == "accuracy"
    assert found.primary.difference.value == pytest.approx(b.mean() - a.mean())
    np.testing.assert_allclose(found.primary.difference[1:], np.percentile(drawn, [2.5, 97.5]), atol=0.005)
    assert found.is_shown
    assert found.primary.p < 0.01
    assert found.balanced.difference.value == pytest.approx(
        balanced_accuracy_score(truth, probabilities.argmax(axis=1))
        - balanced_accuracy_score(truth, other.argmax(axis=1))
    )


def test_paired_is_surer_than_two_intervals_side_by_side():
    truth, probabilities = classes_example()
    found = certainty.paired(truth, worse(truth, probabilities, 0.05), probabilities)
    assert found.primary.a.high > found.primary.b.low
    assert found.is_shown


def test_a_model_does_not_differ_from_itself():
    found = certainty.paired(*classes_example(), classes_example()[1])
    assert found.primary.difference == (0, 0, 0)
    assert (found.primary.p, found.mcnemar_p, found.only_a, found.only_b) == (1, 1, 0, 0)
    assert not found.is_shown


def test_paired_of_labels_compares_the_mean_auroc():
    truth, scores = labels_example()
    noise = np.random.default_rng(1).random(scores.shape).astype(np.float32)
    found = certainty.paired(truth, noise, scores)
    assert found.primary.name == "auroc"
    assert found.primary.difference.value == pytest.approx(roc_auc_score(truth, scores) - roc_auc_score(truth, noise))
    assert found.is_shown
    assert found.balanced is found.mcnemar_p is None


def test_p_is_seldom_small_where_models_are_equally_good():
    rng = np.random.default_rng(0)
    truth = np.ones(200, int)
    small = 0
    for seed in range(200):
        a, b = (np.stack([~right, right], axis=1).astype(np.float32) for right in rng.random((2, 200)) < 0.7)
        small += certainty.paired(truth, a, b, resamples=300, seed=seed).primary.p < 0.05
    assert small / 200 < 0.1


def test_mcnemar_counts_the_images_that_one_model_alone_got_right():
    truth, right, wrong = np.zeros(20, int), [0.9, 0.1], [0.1, 0.9]
    a = np.float32([right] * 3 + [wrong] * 9 + [right] * 8)
    b = np.float32([wrong] * 3 + [right] * 9 + [right] * 8)
    found = certainty.paired(truth, a, b)
    assert (found.only_a, found.only_b) == (3, 9)
    # 2 P(X <= 3) for X of 12 flips of a fair coin.
    assert found.mcnemar_p == pytest.approx(2 * (1 + 12 + 66 + 220) / 2**12)
