import numpy as np
import torch

from hpt_mlflow.evaluation.head import LinearHead, plain_head


def head(multilabel=False):
    generator = torch.Generator().manual_seed(0)
    mean, std = torch.tensor([1.0, -2.0, 100.0]), torch.tensor([0.5, 4.0, 30.0])
    return LinearHead(mean, std, torch.randn(3, 2, generator=generator), torch.tensor([0.3, -0.1]), multilabel)


FEATURES = np.random.default_rng(0).normal([1, -2, 100], [0.5, 4, 30], (50, 3)).astype(np.float32)


def logits_by_hand(one):
    mean, std, weight, bias = (tensor.double().numpy() for tensor in one[:4])
    return np.stack([((row - mean) / std) @ weight + bias for row in FEATURES.astype(np.float64)])


def test_logits_are_of_standardised_features():
    np.testing.assert_allclose(head().logits(torch.from_numpy(FEATURES)), logits_by_hand(head()), atol=1e-5)


def test_of_classes_one_is_true():
    exponentials = np.exp(logits_by_hand(head()))
    expected = exponentials / exponentials.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(head().probabilities(FEATURES), expected, atol=1e-5)


def test_of_labels_each_stands_on_its_own():
    expected = 1 / (1 + np.exp(-logits_by_hand(head(multilabel=True))))
    np.testing.assert_allclose(head(multilabel=True).probabilities(FEATURES), expected, atol=1e-5)


def test_labels_that_are_surely_there_keep_their_order():
    one = plain_head(torch.eye(1), torch.zeros(1), multilabel=True)
    probabilities = one.probabilities(np.array([[18], [22], [30]], np.float32)).ravel()
    assert (np.diff(probabilities) > 0).all()
    assert probabilities[-1] < 1


def test_large_logits_give_no_nan():
    far = FEATURES * np.float32(1e6)
    for multilabel in (False, True):
        assert np.isfinite(head(multilabel).probabilities(far)).all()


def test_a_plain_head_takes_features_as_they_are():
    weight, bias = torch.randn(3, 2, generator=torch.Generator().manual_seed(1)), torch.tensor([1.0, 2.0])
    plain = plain_head(weight, bias, multilabel=True)
    assert plain.multilabel
    expected = FEATURES @ weight.numpy() + bias.numpy()
    np.testing.assert_allclose(plain.logits(torch.from_numpy(FEATURES)), expected, rtol=1e-5)


def test_the_tensors_that_are_kept_make_the_same_head():
    kept = LinearHead(**head().tensors, multilabel=False)
    np.testing.assert_array_equal(kept.probabilities(FEATURES), head().probabilities(FEATURES))


def test_no_images_give_no_rows():
    assert head().probabilities(np.empty((0, 3), np.float32)).shape == (0, 2)
