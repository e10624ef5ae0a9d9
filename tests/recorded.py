"""Stages, versions and evaluations as the stages leave them in MLflow, without any training."""

from __future__ import annotations

import contextlib
import json
import shutil

import mlflow
import numpy as np
import pytest
from mlflow.entities import Dataset as MlflowDataset
from mlflow.entities import DatasetInput
from mlflow.tracking import MlflowClient
from safetensors.numpy import save_file

from hpt_mlflow.data.contents import VERSION
from hpt_mlflow.tracking import tags as tag
from hpt_mlflow.tracking.models.alias_history import alias_version, moves, registered_model

TEST_IMAGES = 400


def stage(tmp_path, kind, dataset, parent=None, name="hpt", tags=None, params=None):
    """A finished training with a registered version; gives its address."""
    client = MlflowClient()
    tags = {"hpt.stage": kind, "hpt.chain": dataset, "hpt.update": "all", "hpt.dataset_digest": f"d-{dataset}"} | (
        tags or {}
    )
    if parent:
        tags["hpt.parent_model"] = parent
    settings = {"steps": 500, "batch_size": 64, "learning_rate": 0.03, "augment": "crop,color,flip", "arch": "resnet18"}
    settings |= {"image_size": 32, "seed": 0, "split_seed": 0} | (params or {})
    with mlflow.start_run(tags=tags) as run:
        mlflow.log_params({f"settings/{key}": value for key, value in settings.items()})
        mlflow.log_metric("knn/val_accuracy", 0.81, step=500)
        log_input(run.info.run_id, dataset)
    model = client.create_logged_model(run.info.experiment_id, "step-500", run.info.run_id, tags, {})
    folder = tmp_path / "model"
    folder.mkdir(exist_ok=True)
    (folder / "MLmodel").write_text("flavors: {}\n")
    client.log_model_artifacts(model.model_id, str(folder))
    client.finalize_logged_model(model.model_id, "READY")
    return register(name, f"models:/{model.model_id}", tags, model.model_id)


def three_stages(empty_database, folder, stages, accuracies):
    """A store with three versions of hpt, each with an evaluation and a classifier; gives its file and the addresses.

    Args:
        stages: kind, dataset, and the index of the stage that each starts from, or None.
    """
    shutil.copy(empty_database, folder / "mlflow.db")
    made = []
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        for kind, dataset, parent in stages:
            made.append(stage(folder, kind, dataset, None if parent is None else made[parent]))
        for seed, (model, accuracy) in enumerate(zip(made, accuracies, strict=True)):
            evaluation(folder, model, accuracy, seed=seed, classifier="hpt-classifier")
        mlflow.set_tracking_uri(None)
    return folder / "mlflow.db", made


def register(name, source, tags, model_id=None):
    client = MlflowClient()
    with contextlib.suppress(mlflow.MlflowException):
        client.create_registered_model(name)
    return f"models:/{name}/{client.create_model_version(name, source, None, tags, model_id=model_id).version}"


def log_input(run_id, dataset):
    profile = {"images": 5000, "train": 3000, "validation": 1000, "test": 1000}
    described = MlflowDataset(dataset, f"d-{dataset}", "hpt_mlflow", "{}", profile=json.dumps(profile))
    MlflowClient().log_inputs(run_id, [DatasetInput(described)])


def predictions(accuracy, seed=0, classes=5, count=TEST_IMAGES):
    """Index, truth and probabilities of `count` images, of which the share `accuracy` is right."""
    rng = np.random.default_rng(99)
    truth = rng.integers(classes, size=count)
    order = np.random.default_rng(seed).permutation(count)
    right = np.isin(np.arange(count), order[: round(accuracy * count)])
    answers = np.where(right, truth, (truth + 1) % classes)
    probabilities = np.full((count, classes), 0.1, np.float32)
    probabilities[np.arange(count), answers] = 0.6
    return {"index": np.arange(count) * 2, "truth": truth, "probabilities": probabilities}


def evaluation(
    tmp_path,
    model,
    accuracy,
    dataset="mnist",
    test="0123456789abcdef",
    protocol="fast",
    seed=0,
    classifier=None,
    contents=str(VERSION),
    **tensors,
):
    """A finished evaluation of a model, with a registered classifier if it is named; gives the run's id."""
    tags = {
        "hpt.stage": "evaluate",
        "hpt.parent_model": model,
        "hpt.chain": "imagenet > cats",
        "hpt.dataset_digest": f"d-{dataset}",
        "hpt.test_digest": test,
        "hpt.metric": "test/accuracy",
        "hpt.protocol": protocol,
        tag.CONTENTS: contents,
    }
    with mlflow.start_run(tags=tags) as run:
        mlflow.log_params({"settings/data": f"builtin:{dataset}", "settings/split_seed": 0})
        figures = {"": accuracy, "_low": accuracy - 0.03, "_high": accuracy + 0.03}
        mlflow.log_metrics({f"test/accuracy{end}": value for end, value in figures.items()})
        log_input(run.info.run_id, dataset)
        file = tmp_path / "predictions.safetensors"
        save_file({**predictions(accuracy, seed), **tensors}, file)
        mlflow.log_artifact(str(file))
        if classifier:
            made = {"hpt.parent_model": model, "hpt.evaluation": run.info.run_id}
            source = mlflow.get_artifact_uri("classifier")
            mlflow.set_tag("hpt.classifier", register(classifier, source, made))
    return run.info.run_id


def champion(name="hpt", alias="champion"):
    """The version that an alias points to, or empty."""
    return alias_version(registered_model(name), alias)


def history(name="hpt", alias="champion"):
    """The recorded moves of an alias, oldest first."""
    return moves(registered_model(name), alias)


def tags(version, name="hpt"):
    """The tags of a version."""
    return MlflowClient().get_model_version(name, str(version)).tags
