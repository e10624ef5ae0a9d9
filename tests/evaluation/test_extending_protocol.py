"""The protocol of docs/extending.md, added from outside the package."""

from __future__ import annotations

import importlib

import mlflow
import numpy as np
import pytest
from PIL import Image

import hpt_mlflow
from hpt_mlflow.errors import HptError
from hpt_mlflow.evaluation import protocols
from hpt_mlflow.evaluation.protocols import Registration, register_protocol, trains_backbone
from hpt_mlflow.settings import EvaluateSettings, StudySettings

NAME = "nearest-centroid"


@pytest.fixture(autouse=True)
def registered(examples):
    importlib.import_module("my_package.protocol").register()
    yield
    del protocols.PROTOCOLS[NAME]


def write_shade(file, shade, seed):
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(shade - 30, shade + 30, (32, 32, 3))
    Image.fromarray(pixels.astype(np.uint8)).save(file)


def test_a_model_is_evaluated_by_a_protocol_from_outside(store, tmp_path):
    images = tmp_path / "images"
    for i in range(60):
        write_shade(images / ("dark", "bright")[i % 2] / f"{i:02}.png", 60 + 130 * (i % 2), seed=i)
    network = {"arch": "shufflenet_v2_x0_5", "image_size": 32, "batch_size": 8, "precision": "float32"}
    model = hpt_mlflow.pretrain(data=str(images), steps=2, milestones="100%", **network).model_uri
    judged = {"device": "cpu", "workers": 1, "precision": "float32"}
    result = hpt_mlflow.evaluate(data=str(images), model=model, protocol=NAME, **judged)
    run = mlflow.get_run(result.run_id)
    assert run.data.tags["hpt.protocol"] == NAME
    assert "**Method** the class of the nearest mean feature" in run.data.tags["mlflow.note.content"]
    assert result.metrics["test/accuracy"] == 1
    assert {"probe/val_accuracy", "random/accuracy", "gain/accuracy"} <= set(result.metrics)
    assert result.classifier_uri == "models:/hpt-classifier/1"
    assert hpt_mlflow.predict(result.classifier_uri, str(images), tmp_path / "said.csv") == (60, 0)


def test_settings_accept_it_and_know_what_it_can_do():
    assert EvaluateSettings(protocol=NAME).protocol == StudySettings(protocol=NAME).protocol == NAME
    with pytest.raises(HptError, match="^steps: protocol nearest-centroid has no steps"):
        EvaluateSettings(protocol=NAME, steps=3)
    assert not trains_backbone(NAME)


def test_a_name_is_given_once():
    with pytest.raises(ValueError, match="another protocol named 'fast'"):
        register_protocol("fast", Registration("elsewhere:Fast", "another one"))


def test_what_is_not_registered_may_have_trained_the_backbone():
    assert trains_backbone("of-a-package-that-is-not-installed")
