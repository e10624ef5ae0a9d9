"""Stages in threads of one process, as a notebook or a scheduler starts them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlflow
import pytest
import torch
from colours import TINY, write_colours
from mlflow.tracking import MlflowClient
from safetensors.torch import load_file

import hpt_mlflow


def train(images, seed, name):
    # Dropout draws in every step.
    settings = TINY | {"arch": "mobilenet_v3_small", "compile": "off", "augment": "crop,flip", "milestones": "100%"}
    return hpt_mlflow.pretrain(data=str(images), steps=4, seed=seed, model_name=name, **settings)


def weights_of(result):
    (file,) = Path(mlflow.artifacts.download_artifacts(result.model_uri)).rglob("*.safetensors")
    return load_file(file)


def losses_of(result):
    return [point.value for point in MlflowClient().get_metric_history(result.run_id, "train/loss")]


def assert_same(result, other):
    assert losses_of(result) == losses_of(other)
    weights = weights_of(other)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in weights_of(result).items())


@pytest.fixture
def images(tmp_path):
    return write_colours(tmp_path / "images", count=36)


@pytest.mark.slow
def test_trainings_in_threads_are_those_that_they_would_be_alone(store, images):
    alone = [train(images, seed, "alone") for seed in (0, 1)]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda seed: train(images, seed, "together"), (0, 1)))
    for one, other in zip(alone, together, strict=True):
        assert_same(one, other)
    assert losses_of(alone[0]) != losses_of(alone[1])


@pytest.mark.slow
def test_an_evaluation_beside_a_training_is_that_alone(past, images):
    settings = {"data": str(past.images), "model": past.model, "device": "cpu", "precision": "float32"}
    alone, trained = hpt_mlflow.evaluate(**settings), train(images, 0, "alone")
    with ThreadPoolExecutor(2) as pool:
        evaluation = pool.submit(hpt_mlflow.evaluate, **settings)
        training = pool.submit(train, images, 0, "together")
        assert evaluation.result().metrics == alone.metrics
        assert_same(training.result(), trained)


def test_a_stage_leaves_the_random_numbers_of_its_caller_alone(store, images):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    train(images, 0, "hpt")
    assert torch.equal(torch.rand(3), expected)
