from __future__ import annotations

import math

import numpy as np
import pytest

from hpt_mlflow.evaluation import neighbours
from hpt_mlflow.evaluation.neighbours import nearest_neighbour_classes, nearest_neighbour_votes


def brute_force(known: np.ndarray, labels: np.ndarray, asked: np.ndarray, k: int) -> list[int]:
    answers = []
    for feature in asked.astype(np.float64):
        similarities = [
            float(feature @ other / np.linalg.norm(feature) / np.linalg.norm(other))
            for other in known.astype(np.float64)
        ]
        votes = [0.0] * (int(labels.max()) + 1)
        for i in sorted(range(len(known)), key=lambda i: -similarities[i])[:k]:
            votes[labels[i]] += math.exp(similarities[i] / 0.07)
        answers.append(int(np.argmax(votes)))
    return answers


def random_features(n: int, seed: int, dimensions: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, dimensions)).astype(np.float32)


@pytest.mark.parametrize("k", [1, 5, 20])
def test_answers_are_those_of_a_plain_loop(k):
    known, asked = random_features(60, 0), random_features(40, 1)
    labels = np.random.default_rng(2).integers(0, 5, 60)
    answers = nearest_neighbour_classes(known, labels, asked, k)
    assert answers.dtype == np.int64
    assert answers.tolist() == brute_force(known, labels, asked, k)


def test_20_neighbours_are_asked_unless_told():
    # All are about as near; most of the nearest 20 are of class 0, most of all 31 of class 1.
    angles = np.linspace(0, 0.3, 31)
    known = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    labels = np.array([0] * 11 + [1] * 20)
    asked = np.array([[1, 0]], dtype=np.float32)
    assert nearest_neighbour_classes(known, labels, asked).tolist() == brute_force(known, labels, asked, 20) == [0]
    assert brute_force(known, labels, asked, 31) == [1]


@pytest.mark.parametrize("count", [1, 7, 19])
def test_fewer_known_features_than_neighbours_all_vote(count):
    known, asked = random_features(count, 0), random_features(30, 1)
    labels = np.random.default_rng(2).integers(0, 3, count)
    assert nearest_neighbour_classes(known, labels, asked).tolist() == brute_force(known, labels, asked, count)


def test_length_of_a_feature_does_not_matter():
    known, asked = random_features(60, 0), random_features(40, 1)
    labels = np.random.default_rng(2).integers(0, 5, 60)
    scaled = known * np.random.default_rng(3).uniform(0.1, 10, (60, 1)).astype(np.float32)
    assert np.array_equal(
        nearest_neighbour_classes(known, labels, asked), nearest_neighbour_classes(scaled, labels, 7 * asked)
    )


def test_one_near_neighbour_outweighs_many_distant_ones():
    known = np.array([[1, 0], [0, 1], [0.1, 1], [-0.1, 1]], dtype=np.float32)
    assert nearest_neighbour_classes(known, np.array([0, 1, 1, 1]), np.array([[1, 0.1]], dtype=np.float32)) == [0]


@pytest.mark.parametrize(("others", "expected"), [(3, 0), (5, 1)])
def test_vote_falls_with_distance_at_temperature_007(others, expected):
    # exp(0.1 / 0.07) = 4.2: so many neighbours outweigh one that is nearer by 0.1.
    known = np.array([[1, 0]] + [[0.9, math.sqrt(1 - 0.9**2)]] * others, dtype=np.float32)
    labels = np.array([0] + [1] * others)
    assert nearest_neighbour_classes(known, labels, np.array([[1, 0]], dtype=np.float32)).tolist() == [expected]


def test_more_questions_than_fit_into_a_chunk(monkeypatch):
    known, asked = random_features(30, 0), random_features(50, 1)
    labels = np.random.default_rng(2).integers(0, 3, 30)
    at_once = nearest_neighbour_classes(known, labels, asked)
    monkeypatch.setattr(neighbours, "CHUNK", 8)
    assert np.array_equal(nearest_neighbour_classes(known, labels, asked), at_once)


def test_votes_are_shares_of_the_weight_of_the_neighbours():
    known = np.array([[1, 0], [0, 1], [-1, 0]], dtype=np.float32)
    asked = np.array([[3, 0], [0.6, 0.8]], dtype=np.float32)
    votes = nearest_neighbour_votes(known, np.array([0, 2, 2]), asked, 2)
    first, second = math.exp(1 / 0.07), 1
    near, nearer = math.exp(0.6 / 0.07), math.exp(0.8 / 0.07)
    expected = [[first, 0, second], [near, 0, nearer]] / np.array([[first + second], [near + nearer]])
    assert votes.dtype == np.float32
    np.testing.assert_allclose(votes, expected, rtol=1e-4)


@pytest.mark.parametrize("chunk", [7, 1024])
def test_each_neighbour_votes_for_all_its_labels(chunk, monkeypatch):
    monkeypatch.setattr(neighbours, "CHUNK", chunk)
    known, asked = random_features(60, 0), random_features(40, 1)
    labels = np.random.default_rng(2).integers(0, 2, (60, 3)).astype(np.uint8)
    votes = nearest_neighbour_votes(known, labels, asked, 5)
    # A label on its own is a class that some are of and the others are not.
    for label in range(3):
        alone = nearest_neighbour_votes(known, labels[:, label].astype(np.int64), asked, 5)
        np.testing.assert_allclose(votes[:, label], alone[:, 1], rtol=1e-5, atol=1e-6)
    assert votes.shape == (40, 3)
    assert votes.sum(axis=1).max() > 1
