from __future__ import annotations

from dataclasses import replace

import mlflow
import numpy as np
import pytest
import torch
from mlflow.tracking import MlflowClient
from PIL import Image
from safetensors.numpy import load_file
from torch import nn

from hpt_mlflow.data.split import Split
from hpt_mlflow.data.statistics import ChannelStatistics
from hpt_mlflow.evaluation.features import FeatureReader
from hpt_mlflow.evaluation.head import plain_head
from hpt_mlflow.evaluation.protocols.base import learn_labels
from hpt_mlflow.evaluation.task import Parts, Task
from hpt_mlflow.stages.evaluation.pictures import log_curve, log_pictures, log_predictions
from hpt_mlflow.tracking.runs.stage_run import stage_run

COUNT = 60
CLASSES = np.arange(COUNT) % 3
LABELS = np.stack([CLASSES > 0, CLASSES == 1], axis=1).astype(np.uint8)
PARTS = np.random.default_rng(1).permutation(COUNT)
SPLIT = Split(np.sort(PARTS[:30]), np.sort(PARTS[30:45]), np.sort(PARTS[45:]))
ALWAYS = {"reliability.png", "nearest neighbours", "embedding map", "predictions.safetensors"}
STEP = 5


@pytest.fixture
def task(open_images):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 150, (COUNT, 10, 12, 3))
    pixels[np.arange(COUNT), :, :, CLASSES] += 5
    images = open_images(list(pixels.astype(np.uint8)))
    reader = FeatureReader(images, 8, ChannelStatistics((0.5,) * 3, (0.25,) * 3), torch.device("cpu"), threads=1)
    return Task(reader, SPLIT, CLASSES, ("red", "green", "blue"), np.arange(COUNT) + 1)


def learn(task, protocol="fast", steps=None):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    return learn_labels(protocol, network, task, 0, steps)


def logged(outcome, names=None, pictures=False):
    """Log all but the pictures, or these, too; gives the run's id."""
    with stage_run("evaluate colours") as run:
        log_curve(run, outcome)
        log_predictions(run, outcome, names or [f"{i}.png" for i in outcome.task.split.test])
        if pictures:
            log_pictures(run, outcome, STEP)
    return run.run_id


def files_of(run_id):
    """Artifacts by path; pictures on the step axis by their key."""
    client = MlflowClient()
    files = {file.path for file in client.list_artifacts(run_id)} - {"images"}
    pictures = [file.path.removeprefix("images/").split("+") for file in client.list_artifacts(run_id, "images")]
    assert all(parts[1:3] == ["step", str(STEP)] for parts in pictures)
    return files | {parts[0] for parts in pictures}


def test_classes_are_shown_by_what_is_taken_for_what(store, task, tmp_path):
    outcome = learn(task)
    assert outcome.test_score < 1
    run_id = logged(outcome, pictures=True)
    assert files_of(run_id) == ALWAYS | {"confusion_matrix.png", "most_confused.png", "predictions.json"}
    for file in files_of(run_id):
        if file.endswith(".png"):
            image = Image.open(MlflowClient().download_artifacts(run_id, file, str(tmp_path)))
            assert min(image.size) > 100
            assert np.asarray(image.convert("L")).std() > 5


def test_without_a_mistake_nothing_is_confused(store, task):
    features = Parts(*(np.eye(3, dtype=np.float32)[part] for part in task.part_labels))
    right = replace(learn(task), features=features, head=plain_head(torch.eye(3), torch.zeros(3)))
    assert "most_confused.png" not in files_of(logged(right, pictures=True))


def test_labels_are_shown_by_their_curves(store, task):
    outcome = learn(replace(task, labels=LABELS, classes=("not red", "green")))
    assert files_of(logged(outcome, pictures=True)) == ALWAYS | {"roc_curves.png"}


def test_what_was_tried_in_fine_tuning_is_a_table(store, task):
    run_id = logged(learn(task, "finetune", 4), pictures=True)
    assert "trials.json" in files_of(run_id)
    assert mlflow.load_table("trials.json", run_ids=[run_id])["learning_rate"].tolist() == [0.01, 0.001]


@pytest.mark.parametrize("truth", [CLASSES, LABELS], ids=["classes", "labels"])
def test_predictions_are_kept_exactly(store, task, truth, tmp_path):
    outcome = learn(replace(task, labels=truth, classes=("a", "b", "c")[: 3 if truth.ndim == 1 else 2]))
    run_id = logged(outcome)
    kept = load_file(MlflowClient().download_artifacts(run_id, "predictions.safetensors", str(tmp_path)))
    np.testing.assert_array_equal(kept["index"], SPLIT.test)
    np.testing.assert_array_equal(kept["truth"], truth[SPLIT.test])
    np.testing.assert_array_equal(kept["probabilities"], outcome.probabilities)


def test_predictions_are_a_table_for_people(store, task):
    outcome = learn(task)
    table = mlflow.load_table("predictions.json", run_ids=[logged(outcome)])
    assert table["image"].tolist() == [f"{i}.png" for i in SPLIT.test]
    assert table["true"].tolist() == [("red", "green", "blue")[i] for i in CLASSES[SPLIT.test]]
    best = outcome.probabilities.argmax(axis=1)
    assert table["predicted"].tolist() == [("red", "green", "blue")[i] for i in best]
    np.testing.assert_allclose(table["probability"], outcome.probabilities.max(axis=1), atol=6e-5)


def test_names_of_files_that_are_no_unicode_are_shown_all_the_same(store, task):
    names = [b"caf\xe9.png".decode(errors="surrogateescape"), "two\nlines.png", *["x.png"] * 13]
    table = mlflow.load_table("predictions.json", run_ids=[logged(learn(task), names=names)])
    assert table["image"].tolist()[:2] == ["caf\\udce9.png", "two\\nlines.png"]


def test_the_curve_is_there_by_its_own_steps_without_what_is_unknown(store, task):
    outcome = learn(task)
    client, run_id = MlflowClient(), logged(outcome)
    for part in ("validation", "test"):
        name = f"probe_curve/{'val' if part == 'validation' else part}_accuracy"
        history = client.get_metric_history(run_id, name)
        assert [(m.step, m.value) for m in history] == [(p.step, getattr(p, f"{part}_score")) for p in outcome.curve]
    tuned = logged(learn(task, "finetune", 4))
    assert set(client.get_run(tuned).data.metrics) == {"probe_curve/val_accuracy"}


def test_an_image_that_vanished_is_a_grey_square(store, task):
    outcome = learn(task)
    task.reader.images.unreadable[int(SPLIT.test[0])] = "vanished"
    task.reader.images.unreadable[int(SPLIT.train[0])] = "vanished"
    assert "nearest neighbours" in files_of(logged(outcome, pictures=True))


def test_few_images_are_enough(store, task):
    few = replace(task, split=Split(SPLIT.train[:4], SPLIT.validation[:4], SPLIT.test[:2]))
    few = replace(few, labels=np.where(np.isin(np.arange(COUNT), [*few.split.train[:2], few.split.test[0]]), 0, 1))
    assert files_of(logged(learn(replace(few, classes=("a", "b"))), pictures=True)) >= ALWAYS - {"embedding map"}
