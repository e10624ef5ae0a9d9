"""Evaluations from end to end: a real store, a small model, few images."""

from __future__ import annotations

import csv
import hashlib
import os
import shutil
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from mlflow.tracking import MlflowClient
from PIL import Image
from safetensors.numpy import load_file
from sklearn.metrics import roc_auc_score

import hpt_mlflow
from hpt_mlflow.data.dataset import content_digest
from hpt_mlflow.data.sources import open_dataset
from hpt_mlflow.errors import HptError
from hpt_mlflow.settings import EvaluateSettings
from hpt_mlflow.stages.evaluation.work import classifier_name
from hpt_mlflow.stages.predict import predict
from hpt_mlflow.tracking.models.store import find_model

PICTURES = {"confusion_matrix", "reliability", "embedding map", "nearest neighbours"}
COMMON = {"device": "cpu", "workers": 1}


@pytest.fixture(scope="module")
def world(pretrained, tmp_path_factory):
    """The store in which all of this happens, with the model that was trained before."""
    database, past = pretrained
    folder = tmp_path_factory.mktemp("world")
    shutil.copy(database, folder / "mlflow.db")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        for name in ("cache", "spool"):
            patched.setenv(f"HPT_{name.upper()}", str(folder / name))
        patched.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        mlflow.set_tracking_uri(None)
        yield past


@pytest.fixture(scope="module")
def evaluated(world):
    """The evaluation of a run: each of its two milestones, the last one in full."""
    result = hpt_mlflow.evaluate(data=str(world.images), model=f"runs:/{world.run_id}", **COMMON)
    mlflow.set_registry_uri("")
    os.environ.pop("MLFLOW_REGISTRY_URI", None)
    return result, mlflow.get_run(result.run_id)


def artifacts(run_id):
    """Names of a run's artifacts, and the keys of its images on the step axis."""
    client = MlflowClient()
    files = {Path(file.path).stem for file in client.list_artifacts(run_id)}
    return files | {Path(file.path).name.split("+")[0] for file in client.list_artifacts(run_id, "images")}


def predictions(run_id, tmp_path):
    return load_file(MlflowClient().download_artifacts(run_id, "predictions.safetensors", str(tmp_path)))


def test_digest(dataset, split_seed):
    """By place, content, label and class names of the test images."""
    test = dataset.split(split_seed).test
    contents = [hashlib.blake2b(dataset.pictures[i].read_bytes(), digest_size=8).digest() for i in test]
    numbers = np.array([int.from_bytes(content, "little", signed=True) for content in contents])
    classes = np.frombuffer("\0".join(dataset.classes).encode(), np.uint8)
    return content_digest(test, numbers, dataset.labels[test], classes)


test_digest.__test__ = False


def test_the_run_says_what_it_is(world, evaluated):
    result, run = evaluated
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "evaluate images: images"
    tags = run.data.tags
    assert tags["hpt.stage"] == "evaluate"
    assert tags["hpt.chain"] == "images"
    assert tags["hpt.parent_model"] == result.model_uri == "models:/hpt/1"
    assert tags["hpt.dataset_digest"] == world.dataset.digest
    assert tags["hpt.test_digest"] == test_digest(world.dataset, split_seed=0)
    assert (tags["hpt.metric"], tags["hpt.protocol"]) == ("test/accuracy", "fast")
    assert tags["hpt.classifier"] == result.classifier_uri == "models:/hpt-classifier/1"
    assert run.data.params["settings/model"] == "models:/hpt/1"
    assert run.data.params["settings/arch"] == "shufflenet_v2_x0_5"
    (dataset,) = run.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.tags[0].value) == ("images", "evaluation")


def test_every_test_figure_lies_in_its_interval(evaluated):
    result, run = evaluated
    metrics = run.data.metrics
    for name in ("test/accuracy", "test/balanced_accuracy", "gain/accuracy"):
        assert metrics[f"{name}_low"] <= metrics[name] <= metrics[f"{name}_high"]
    assert metrics["gain/accuracy"] == pytest.approx(metrics["test/accuracy"] - metrics["random/accuracy"])
    expected = "probe/val_accuracy probe/converged probe/regularisation knn/val_accuracy knn/test_accuracy"
    expected += " random/balanced_accuracy random/knn_accuracy chance/accuracy test/calibration_error"
    assert set(expected.split()) <= metrics.keys()
    assert metrics["data/test_images_seen"] == metrics["data/unreadable_images"] == 0
    # The stage hands back what it has logged.
    assert {name: metrics[name] for name in result.metrics} == pytest.approx(result.metrics)


def test_each_milestone_has_its_score(world, evaluated):
    result, run = evaluated
    history = MlflowClient().get_metric_history(run.info.run_id, "test/accuracy")
    assert [metric.step for metric in history] == [1, 2]
    models = mlflow.search_logged_models(filter_string=f"source_run_id = '{world.run_id}'", output_format="list")
    by_name = {model.name: {metric.key: metric.value for metric in model.metrics} for model in models}
    assert [by_name[f"step-{metric.step}"]["test/accuracy"] for metric in history] == [m.value for m in history]
    assert by_name["step-2"]["gain/accuracy"] == pytest.approx(result.metrics["gain/accuracy"])


def test_the_run_shows_pictures(evaluated):
    files = artifacts(evaluated[0].run_id)
    assert PICTURES | {"milestones", "predictions"} <= files
    assert "trials" not in files


def test_the_figures_are_those_of_the_predictions_that_are_kept(world, evaluated, tmp_path):
    result, _ = evaluated
    kept = predictions(result.run_id, tmp_path)
    test = world.dataset.split(0).test
    np.testing.assert_array_equal(kept["index"], test)
    np.testing.assert_array_equal(kept["truth"], world.dataset.labels[test])
    assert result.metrics["test/accuracy"] == np.mean(kept["probabilities"].argmax(axis=1) == kept["truth"])


def test_the_classifier_says_of_files_what_the_evaluation_said_of_them(world, evaluated, tmp_path):
    result, _ = evaluated
    kept = predictions(result.run_id, tmp_path)
    assert predict(result.classifier_uri, str(world.images), tmp_path / "out.csv", "cpu") == (60, 0)
    with open(tmp_path / "out.csv", newline="") as opened:
        rows = list(csv.DictReader(opened))
    found = [[float(rows[i][f"p({name})"]) for name in ("blue", "green", "red")] for i in kept["index"]]
    np.testing.assert_allclose(found, kept["probabilities"], atol=1e-4)
    served = mlflow.pyfunc.load_model(result.classifier_uri)
    files = [world.dataset.pictures[i].read_bytes() for i in kept["index"]]
    answers = served.predict(files)["label"].tolist()
    assert answers == [("blue", "green", "red")[i] for i in kept["probabilities"].argmax(axis=1)]


def test_the_classifier_leads_back_to_evaluation_and_backbone(evaluated):
    result, run = evaluated
    version = MlflowClient().get_model_version("hpt-classifier", "1")
    assert version.tags["hpt.evaluation"] == result.run_id
    assert version.tags["hpt.parent_model"] == "models:/hpt/1"
    assert version.tags["hpt.stage"] == "evaluate"
    card = run.data.tags["mlflow.note.content"]
    assert "hpt predict models:/hpt-classifier/1 FOLDER" in card
    assert "learned from 36 images, chosen on 12, tested once on 12" in card


def test_a_second_evaluation_gives_the_same_figures_under_another_name(world, evaluated):
    result = hpt_mlflow.evaluate(
        data=str(world.images), model=world.model, classifier_name="mine", untrained=False, **COMMON
    )
    again, first = (mlflow.get_run(one.run_id).data for one in (result, evaluated[0]))
    assert again.tags["hpt.test_digest"] == first.tags["hpt.test_digest"]
    assert result.classifier_uri == "models:/mine/1"
    same = [name for name in again.metrics if name.startswith(("test/", "probe/", "knn/", "chance/"))]
    assert len(same) > 10
    assert {name: again.metrics[name] for name in same} == {name: first.metrics[name] for name in same}
    assert not [name for name in again.metrics if name.startswith(("random/", "gain/"))]


def several_labels(world, file):
    """A table of the images with a label for what has red in it, and one for what is green; split by itself."""
    rng = np.random.default_rng(0)
    with open(file, "w", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(["path", "Not Red", "green?", "split"])
        kept_to = set(world.dataset.split(0).test.tolist())
        for i in rng.permutation(60):
            path = world.dataset.pictures[i]
            part = "test" if i in kept_to else "train"
            writer.writerow([path, int(path.parent.name != "red"), int(path.parent.name == "green"), part])
    return f"csv:{file}"


def test_inside_a_run_of_the_users_with_autologging_there_is_one_run_more_in_its_experiment(world):
    before = {run.info.run_id for run in mlflow.search_runs(search_all_experiments=True, output_format="list")}
    mlflow.autolog(silent=True)
    try:
        with mlflow.start_run(experiment_id=mlflow.create_experiment("mine")) as around:
            data = str(world.images)
            result = hpt_mlflow.evaluate(
                data=data, model=world.model, untrained=False, classifier_name="none", **COMMON
            )
    finally:
        mlflow.autolog(disable=True)
    after = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert {run.info.run_id for run in after} - before == {around.info.run_id, result.run_id}
    run = mlflow.get_run(result.run_id)
    assert run.info.experiment_id == around.info.experiment_id
    assert run.data.tags["mlflow.parentRunId"] == around.info.run_id


def test_labels_that_stand_each_on_their_own(world, tmp_path):
    before = {model.name for model in MlflowClient().search_registered_models()}
    address = several_labels(world, tmp_path / "table.csv")
    result = hpt_mlflow.evaluate(
        data=address, model="models:/hpt/latest", classifier_name="none", labels="50%", **COMMON
    )
    run = mlflow.get_run(result.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["hpt.metric"] == "test/auroc"
    metrics = run.data.metrics
    for name in ("test/auroc", "test/auroc/Not Red", "test/auroc/green_", "gain/auroc"):
        assert metrics[f"{name}_low"] <= metrics[name] <= metrics[f"{name}_high"]
    kept = predictions(result.run_id, tmp_path)
    areas = roc_auc_score(kept["truth"], kept["probabilities"], average=None)
    assert metrics["test/auroc"] == pytest.approx(areas.mean())
    assert [metrics["test/auroc/Not Red"], metrics["test/auroc/green_"]] == pytest.approx(areas)
    assert metrics["chance/auroc"] == 0.5
    assert not [name for name in metrics if "accuracy" in name]
    assert {"roc_curves", "reliability", "nearest neighbours"} <= artifacts(result.run_id)

    # Half of the labels were learned from.
    train = len(open_dataset(address).split(0).train)
    card = run.data.tags["mlflow.note.content"]
    assert f"learned from {round(train / 2)} images" in card

    # The classifier is with its run only, and serves all the same.
    assert result.classifier_uri is None
    assert "hpt.classifier" not in run.data.tags
    assert {model.name for model in MlflowClient().search_registered_models()} == before
    assert f"hpt predict runs:/{result.run_id}/classifier FOLDER" in card
    assert predict(f"runs:/{result.run_id}/classifier", str(world.images), tmp_path / "out.csv", "cpu") == (60, 0)
    served = mlflow.pyfunc.load_model(f"runs:/{result.run_id}/classifier")
    probabilities = served.predict(np.asarray(Image.open(world.dataset.pictures[0])))["probabilities"][0]
    assert list(probabilities) == ["Not Red", "green?"]


def test_fine_tuning_with_few_labels_changes_the_backbone_and_is_repeated(world, tmp_path):
    result = hpt_mlflow.evaluate(
        data=str(world.images),
        model=world.model,
        protocol="finetune",
        labels="6",
        steps=4,
        repeats=2,
        untrained=False,
        split_seed=1,
        allow_seen=True,
        **COMMON,
    )
    run = mlflow.get_run(result.run_id)
    assert (run.info.status, run.data.tags["hpt.protocol"]) == ("FINISHED", "finetune")
    metrics = run.data.metrics
    assert {"repeats/accuracy_mean", "repeats/accuracy_std", "finetune/val_accuracy", "finetune/learning_rate"} <= set(
        metrics
    )
    assert metrics["repeats/count"] == 2
    assert metrics["data/test_images_seen"] > 0
    assert "learned from 6 images" in run.data.tags["mlflow.note.content"]
    table = mlflow.load_table("trials.json", run_ids=[result.run_id])
    assert table["schedule"].tolist() == ["4 iterations"] * 2
    assert run.data.tags["hpt.test_digest"] == test_digest(world.dataset, split_seed=1)
    tuned, given = (find_model(address, "model", "hpt") for address in (result.classifier_uri, world.model))
    assert tuned.card.chain == given.card.chain
    same = [torch.equal(a, b) for a, b in zip(tuned.backbone.buffers(), given.backbone.buffers(), strict=True)]
    assert not all(same) or metrics["finetune/step"] == 0
    with pytest.raises(HptError, match="were trained on by evaluate"):
        hpt_mlflow.evaluate(data=str(world.images), model=result.classifier_uri, split_seed=2, **COMMON)


def test_a_run_that_fails_is_failed_and_registers_nothing(world, monkeypatch):
    before = {(v.name, v.version) for v in MlflowClient().search_model_versions()}
    monkeypatch.setenv("HPT_CACHE_GIB", "much")
    with pytest.raises(HptError, match="HPT_CACHE_GIB"):
        hpt_mlflow.evaluate(data=str(world.images), model=world.model, **COMMON)
    newest, *others = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert newest.info.status == "FAILED"
    assert newest.data.tags["hpt.parent_model"] == world.model
    assert {run.info.status for run in others} <= {"FINISHED", "FAILED"}
    assert {(v.name, v.version) for v in MlflowClient().search_model_versions()} == before


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model": "models:/hpt/9"}, "model: 'hpt' has no version '9'"),
        ({"model": f"runs:/{'0' * 32}"}, "model: there is no run"),
        ({"labels": "many"}, "labels: 'many' is neither"),
        ({"classifier_name": "a/b"}, "'a/b'"),
        ({"split_seed": 1}, "were trained on by pretrain images"),
        ({"data": "nowhere"}, "data: there is no folder"),
        ({"repeats": 3}, "repeats: protocol fast has no steps, and nothing random; use it with --protocol paper or"),
    ],
)
def test_what_can_be_refused_is_refused_before_a_run_is_started(world, settings, words):
    before = len(mlflow.search_runs(search_all_experiments=True, output_format="list"))
    with pytest.raises(HptError) as caught:
        hpt_mlflow.evaluate(**({"data": str(world.images), "model": world.model} | COMMON | settings))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(mlflow.search_runs(search_all_experiments=True, output_format="list")) == before


@pytest.mark.parametrize(
    ("said", "uri", "name"),
    [
        (None, "models:/hpt/3", "hpt-classifier"),
        (None, "models:/birds/1", "birds-classifier"),
        (None, "models:/birds-classifier/1", "birds-classifier"),
        (None, "models:/m-0123456789abcdef", "hpt-classifier"),
        (None, "runs:/0123456789abcdef/step-5", "hpt-classifier"),
        ("mine", "models:/birds/1", "mine"),
        ("none", "models:/birds/1", None),
    ],
)
def test_the_classifier_is_named_after_its_backbone(said, uri, name):
    assert classifier_name(EvaluateSettings(classifier_name=said), uri) == name
