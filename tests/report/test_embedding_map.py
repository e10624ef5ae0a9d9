from __future__ import annotations

import io

import numpy as np
import pytest

from hpt_mlflow.report.embedding_map import embedding_map, map_points


def blobs(count: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features float32 (count, 16) in as many separate directions as classes, and their classes."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    centres = 5 * rng.normal(size=(classes, 16))
    return (centres[labels] + rng.normal(size=(count, 16))).astype(np.float32), labels


def stored(figure) -> int:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.tell()


def drawn_points(figure) -> int:
    return sum(len(points.get_offsets()) for points in figure.axes[0].collections)


def test_few_classes_are_named_in_a_legend():
    features, labels = blobs(60, 3)
    figure = embedding_map(features, labels, ["cat", "dog", "$x$"])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["cat", "dog", "\\$x\\$"]
    assert [len(points.get_offsets()) for points in figure.axes[0].collections] == [20, 20, 20]
    assert figure.axes[0].get_title() == "t-SNE of the features of 60 images"
    assert stored(figure) < 1_000_000


def test_clusters_stay_together():
    features, labels = blobs(90, 3)
    points = map_points(features)
    distances = np.linalg.norm(points[:, None] - points[None], axis=2) + 1e9 * np.eye(90)
    assert np.array_equal(labels[distances.argmin(axis=1)], labels)


def test_of_many_classes_the_most_frequent_have_a_colour():
    features, labels = blobs(100, 50)
    labels[:30] = 40
    figure = embedding_map(features, labels, [str(i) for i in range(50)])
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(texts) == 1 + 18
    assert "40" in texts
    assert texts[0] == f"{len(np.unique(labels)) - 18} other classes"
    assert drawn_points(figure) == 100
    looks = {
        (tuple(points.get_facecolor()[0]), points.get_paths()[0].vertices.tobytes())
        for points in figure.axes[0].collections
    }
    assert len(looks) == 1 + 18


def test_points_are_drawn_from_every_class_alike(monkeypatch):
    monkeypatch.setattr("hpt_mlflow.report.embedding_map.MOST_POINTS", 60)
    features, _ = blobs(300, 3)
    labels = np.repeat([0, 1, 2], [150, 100, 50])
    figure = embedding_map(features, labels, ["a", "b", "c"])
    assert [len(points.get_offsets()) for points in figure.axes[0].collections] == [30, 20, 10]
    assert figure.axes[0].get_title() == "t-SNE of the features of 60 of 300 images"


def test_images_with_one_label_have_its_colour():
    features, _ = blobs(12, 3)
    labels = np.tile(np.array([[1, 0], [0, 1], [1, 1], [0, 0]], dtype=np.uint8), (3, 1))
    figure = embedding_map(features, labels, ["a", "b"])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["no label, or several", "a", "b"]
    assert [len(points.get_offsets()) for points in figure.axes[0].collections] == [6, 3, 3]


@pytest.mark.parametrize("size", [1, 2, 16])
def test_few_images_have_a_map_and_fewer_have_none(size):
    features = np.random.default_rng(0).normal(size=(5, size)).astype(np.float32)
    labels = np.zeros(5, dtype=np.int64)
    assert drawn_points(embedding_map(features, labels, ["a"])) == 5
    assert embedding_map(features[:4], labels[:4], ["a"]) is None


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_collapsed_network_has_a_map(value):
    figure = embedding_map(np.full((40, 8), value, dtype=np.float32), np.arange(40), [f"class {i}" for i in range(40)])
    assert drawn_points(figure) == 40
    assert stored(figure) > 0


def test_map_is_the_same_for_the_same_seed():
    features, _ = blobs(50, 5)
    assert np.array_equal(map_points(features, 3), map_points(features, 3))


def test_length_of_features_does_not_count():
    features, _ = blobs(50, 5)
    longer = features * np.linspace(1, 2, 50, dtype=np.float32)[:, None].round(0)
    assert map_points(longer) == pytest.approx(map_points(features), abs=1e-2)
