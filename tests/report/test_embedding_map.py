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
    return sum(len(one.get_offsets()) for one in figure.axes[0].collections)


def overlaps(texts) -> int:
    boxes = [text.get_window_extent() for text in texts]
    return sum(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[:i])


def test_few_classes_are_named_in_a_legend():
    features, labels = blobs(60, 3)
    figure = embedding_map(features, labels, ["cat", "dog", "$x$"])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["cat", "dog", "\\$x\\$"]
    assert [len(one.get_offsets()) for one in figure.axes[0].collections] == [20, 20, 20]
    assert figure.axes[0].get_title() == "t-SNE of the features of 60 images"
    assert stored(figure) < 1_000_000


def test_clusters_stay_together():
    features, labels = blobs(90, 3)
    points = map_points(features)
    distances = np.linalg.norm(points[:, None] - points[None], axis=2) + 1e9 * np.eye(90)
    assert np.array_equal(labels[distances.argmin(axis=1)], labels)


def test_many_classes_are_named_on_the_map_without_overlap():
    features, labels = blobs(450, 45)
    figure = embedding_map(features, labels, [f"some class {i}" for i in range(45)])
    texts = figure.axes[0].texts
    assert sorted(text.get_text() for text in texts) == sorted(f"some class {i}" for i in range(45))
    assert stored(figure) < 1_000_000
    assert overlaps(texts) == 0
    assert figure.legends == []


def test_of_very_many_classes_the_most_frequent_have_a_colour():
    features, labels = blobs(690, 345)
    labels[:30] = 200
    figure = embedding_map(features, labels, [str(i) for i in range(345)])
    assert len(figure.axes[0].texts) == 45
    assert "200" in [text.get_text() for text in figure.axes[0].texts]
    assert drawn_points(figure) == 690
    others = len(np.unique(labels)) - 45
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == [f"{others} other classes"]


def test_points_are_drawn_from_every_class_alike(monkeypatch):
    monkeypatch.setattr("hpt_mlflow.report.embedding_map.MOST_POINTS", 60)
    features, _ = blobs(300, 3)
    labels = np.repeat([0, 1, 2], [150, 100, 50])
    figure = embedding_map(features, labels, ["a", "b", "c"])
    assert [len(one.get_offsets()) for one in figure.axes[0].collections] == [30, 20, 10]
    assert figure.axes[0].get_title() == "t-SNE of the features of 60 of 300 images"


def test_images_with_one_label_have_its_colour():
    features, _ = blobs(12, 3)
    labels = np.tile(np.array([[1, 0], [0, 1], [1, 1], [0, 0]], dtype=np.uint8), (3, 1))
    figure = embedding_map(features, labels, ["a", "b"])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["no label, or several", "a", "b"]
    assert [len(one.get_offsets()) for one in figure.axes[0].collections] == [6, 3, 3]


def test_without_labels_all_points_are_alike():
    figure = embedding_map(blobs(12, 3)[0], None, [])
    assert drawn_points(figure) == 12
    assert figure.legends == []


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("size", [1, 2, 16])
def test_few_points(count, size):
    features = np.random.default_rng(0).normal(size=(count, size)).astype(np.float32)
    figure = embedding_map(features, np.zeros(count, dtype=np.int64), ["a"])
    assert drawn_points(figure) == count
    assert figure.axes[0].get_title().startswith("t-SNE" if count >= 5 else "Two principal components")
    assert stored(figure) > 0


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_collapsed_network_has_a_map(value):
    points = map_points(np.full((40, 8), value, dtype=np.float32))
    assert np.isfinite(points).all()
    labels = np.arange(40)
    figure = embedding_map(np.full((40, 8), value, dtype=np.float32), labels, [f"class {i}" for i in range(40)])
    assert stored(figure) > 0
    assert overlaps(figure.axes[0].texts) == 0


def test_map_is_the_same_for_the_same_seed():
    features, _ = blobs(50, 5)
    assert np.array_equal(map_points(features, 3), map_points(features, 3))


def test_length_of_features_does_not_count():
    features, _ = blobs(50, 5)
    longer = features * np.linspace(1, 2, 50, dtype=np.float32)[:, None].round(0)
    assert map_points(longer) == pytest.approx(map_points(features), abs=1e-2)
