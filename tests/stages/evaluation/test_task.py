from __future__ import annotations

import mlflow
import pytest
from colours import task_of, write_colours
from PIL import Image

import hpt_mlflow
from hpt_mlflow.data.sources import open_dataset
from hpt_mlflow.errors import HptError
from hpt_mlflow.settings import EvaluateSettings
from hpt_mlflow.stages.evaluation.task import label_count
from hpt_mlflow.tracking.models.store import find_model


def test_a_task_reads_images_as_the_model_was_trained(past):
    for protocol, resize_to, side in (("fast", None, 32), ("paper", 37, 40), ("finetune", 37, 40)):
        _, _, task = task_of(past, past.images, protocol=protocol)
        card = find_model(past.model, "model", "hpt").card
        assert (task.reader.image_size, task.reader.resize_to) == (32, resize_to)
        assert (task.reader.statistics.mean, task.reader.statistics.std) == (card.mean, card.std)
        assert {min(image.shape[:2]) for image in task.reader.images.sample} == {min(36, side)}
        assert len(set(task.content)) == 60


def count_of(labels, train_images=200, protocol="fast"):
    return label_count(EvaluateSettings(labels=labels, protocol=protocol), train_images)


def test_labels_are_a_number_or_a_share():
    assert [count_of(text) for text in ("10", "200", "10%", "0.5%", "100%", "12.5 %")] == [
        10,
        200,
        0.1,
        0.005,
        1.0,
        0.125,
    ]
    assert [type(count_of(text)) for text in ("1", "100%")] == [int, float]


@pytest.mark.parametrize(
    ("protocol", "images", "count"),
    [("fast", 5000, None), ("paper", 5000, None), ("finetune", 5000, 1000), ("finetune", 1000, None)],
)
def test_without_a_number_all_are_learned_from_but_by_fine_tuning(protocol, images, count):
    assert count_of(None, images, protocol) == count


@pytest.mark.parametrize(
    "text", ["0", "-5", "0%", "-1%", "101%", "nan%", "inf%", "ten", "", "%", "1.5", "0.1", "1e3", "201"]
)
def test_what_is_no_number_of_labels_is_refused(text):
    with pytest.raises(HptError, match=f"^labels: .*{text}") as caught:
        count_of(text)
    assert "\n" not in str(caught.value)


def test_too_few_labels_for_the_classes_are_refused_before_a_run_is_started(past):
    with pytest.raises(HptError, match="2 images cannot hold one of each of 3 classes"):
        hpt_mlflow.evaluate(data=str(past.images), model=past.model, labels="2")
    assert len(mlflow.search_runs(search_all_experiments=True, output_format="list")) == 1


def test_unreadable_images_that_leave_a_class_empty_are_refused(past, tmp_path):
    images = write_colours(tmp_path / "images", count=400, seed=1)
    (images / "grey").mkdir()
    for i in range(3):
        Image.new("L", (8, 8), i).save(images / "grey" / f"{i}.png")
    dataset = open_dataset(str(images))
    grey = [i for i in dataset.split(0).train if dataset.names[i].startswith("grey")]
    for i in grey:
        dataset.pictures[i].write_bytes(b"")
    with pytest.raises(HptError, match="in .* but not in train, so they cannot be learned: 'grey'"):
        task_of(past, images)


def test_what_is_in_test_is_not_learned_from_where_the_split_compares_a_sample_only(past, tmp_path, monkeypatch):
    monkeypatch.setattr("hpt_mlflow.data.dataset.MOST", 10)
    monkeypatch.setattr("hpt_mlflow.data.dataset.SAMPLED", 1)
    images = write_colours(tmp_path / "images")
    dataset = open_dataset(str(images))
    split = dataset.split(0)
    dataset.pictures[split.train[0]].write_bytes(dataset.pictures[split.test[0]].read_bytes())
    task = task_of(past, images)[2]
    assert task.split.train.tolist() == split.train[1:].tolist()
    assert task.split.test.tolist() == split.test.tolist()
