"""Stages in several processes that they start themselves, as Python calls them."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from pathlib import Path

import mlflow
import pytest
import torch
from mlflow.tracking import MlflowClient
from scenes import write_digits

import hpt_mlflow
from hpt_mlflow.errors import HptError
from hpt_mlflow.settings import PretrainSettings
from hpt_mlflow.stages.processes.launch import is_launched_here
from hpt_mlflow.tracking.models.store import find_model

SHORT = {
    "data": "builtin:digits",
    "steps": 4,
    "batch_size": 32,
    "precision": "float32",
    "compile": "off",
    "milestones": "50%",
}
PRETRAIN = SHORT | {"arch": "shufflenet_v2_x0_5", "image_size": 16}
HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def runs():
    return mlflow.search_runs(search_all_experiments=True, output_format="list")


def own_processes():
    """Of this process, by number; there may be those of other tests."""
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def test_two_processes_are_one_run_with_the_result_of_one(store, monkeypatch, tmp_path):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    settings = PRETRAIN | {"data": str(write_digits(tmp_path / "digits"))}
    alone = hpt_mlflow.pretrain(**settings, model_name="alone")
    variables, handlers = dict(os.environ), [signal.getsignal(number) for number in HANDLED]
    before = own_processes()
    with mlflow.start_run(run_name="around") as around:
        result = hpt_mlflow.pretrain(**settings, nproc=2, model_name="together")

    # Nothing is left of it.
    assert dict(os.environ) == variables
    assert [signal.getsignal(number) for number in HANDLED] == handlers
    assert own_processes() == before
    assert not list((tmp_path / "temporary").glob("hpt-*"))

    assert len(runs()) == 3
    one, two = mlflow.get_run(alone.run_id), mlflow.get_run(result.run_id)
    assert two.data.tags["mlflow.parentRunId"] == around.info.run_id
    assert two.info.status == "FINISHED"
    assert two.data.metrics.keys() == one.data.metrics.keys() == result.metrics.keys()
    assert (one.data.params["settings/nproc"], two.data.params["settings/nproc"]) == ("1", "2")
    differing = {name for name in one.data.params if one.data.params[name] != two.data.params.get(name)}
    assert differing == {"settings/nproc", "settings/model_name"}
    # A queue whose keys are normalised in the same four parts, and queries in two instead of one.
    assert two.data.metrics["train/loss"] == pytest.approx(one.data.metrics["train/loss"], rel=0.1)
    assert (result.model_uri, result.chain) == ("models:/together/1", ("digits",))
    backbone = find_model(result.model_uri, "model", "hpt").backbone
    assert all(tensor.isfinite().all() for tensor in backbone.state_dict().values())
    models = MlflowClient().search_logged_models(["0"], f"source_run_id = '{result.run_id}'")
    assert sorted(model.name for model in models) == ["step-2", "step-4"]


@pytest.fixture
def nothing_starts(monkeypatch):
    """A process cannot be started, and a test that gets that far sees another error than it expects."""
    monkeypatch.setattr(sys, "executable", "/no/python")


@pytest.mark.parametrize(
    ("device", "gpus", "words"),
    [
        ("mps", 0, "nproc: 2 processes cannot share mps; use device cuda or cpu, or nproc 1"),
        ("cuda:0", 4, "nproc: 2 processes cannot share cuda:0; use device cuda or cpu, or nproc 1"),
        ("cuda", 1, "nproc: 2 processes need as many GPUs, but torch sees 1; lower it"),
    ],
)
def test_devices_that_cannot_be_shared_are_refused(nothing_starts, monkeypatch, device, gpus, words):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: device == "mps")
    for chosen in (device, "auto") if device != "cuda:0" else (device,):
        with pytest.raises(HptError) as caught:
            hpt_mlflow.pretrain(**PRETRAIN, nproc=2, device=chosen)
        assert str(caught.value) == words


def test_a_device_that_is_not_here_is_refused(nothing_starts, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for device in ("cuda", "cuda:1", "tpu"):
        with pytest.raises(HptError, match="^device: ") as caught:
            hpt_mlflow.adapt(**SHORT, nproc=2, device=device)
        assert "\n" not in str(caught.value)


def test_enough_gpus_are_not_refused(nothing_starts, monkeypatch, store):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for settings in ({"nproc": 2, "device": "cuda"}, {"nproc": 8, "device": "cpu"}):
        with pytest.raises(HptError, match=r"^cannot start another process \(.*No such file") as caught:
            hpt_mlflow.pretrain(**PRETRAIN, **settings)
        assert "\n" not in str(caught.value)


def test_one_process_or_one_that_torchrun_has_started_starts_none(monkeypatch):
    assert is_launched_here(PretrainSettings(nproc=2))
    assert not is_launched_here(PretrainSettings())
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not is_launched_here(PretrainSettings(nproc=2))
    with pytest.raises(HptError, match="main starts its processes itself; use --nproc"):
        hpt_mlflow.main()


def test_one_of_several_that_were_started_without_torchrun_starts_none(monkeypatch, nothing_starts):
    variables = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert not is_launched_here(PretrainSettings())
    with pytest.raises(HptError, match="^nproc: 2 processes cannot be started by one of several"):
        hpt_mlflow.pretrain(**PRETRAIN, nproc=2)
    for stage in (hpt_mlflow.main, hpt_mlflow.tune, hpt_mlflow.study, hpt_mlflow.evaluate):
        with pytest.raises(HptError, match="without torchrun"):
            stage()
    with pytest.raises(HptError, match="^steps: 0 registers weights in one process"):
        hpt_mlflow.pretrain(weights="torchvision:resnet18", steps=0)
    monkeypatch.delenv("MASTER_PORT")
    for stage in (hpt_mlflow.pretrain, hpt_mlflow.adapt, hpt_mlflow.evaluate):
        with pytest.raises(HptError, match="^MASTER_PORT: not set"):
            stage()


def test_main_trains_in_several_processes(nothing_starts, store):
    with pytest.raises(HptError, match=r"^cannot start another process"):
        hpt_mlflow.main(base="builtin:digits", target="builtin:digits", nproc=2)


@pytest.mark.slow
def test_an_adaptation_in_two_processes_of_the_newest_version(past):
    """One process resolves `latest` for both; with the settings of HPT-BN all but the BatchNorm layers stay."""
    short = {"steps": 2, "batch_size": 8, "precision": "float32", "update": "bn", "on_no_gain": "register"}
    adapted = hpt_mlflow.adapt(data=str(past.images), nproc=2, **short)
    run = mlflow.get_run(adapted.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["settings/nproc"] == "2"
    assert run.data.tags["hpt.parent_model"] == past.model
    assert adapted.chain == ("images", "images")
    assert 0 <= adapted.metrics["judge/knn"] <= 1
    first, second = (find_model(uri, "model", "hpt").backbone for uri in (past.model, adapted.model_uri))
    assert torch.equal(first.conv1[0].weight, second.conv1[0].weight)
    assert not torch.equal(first.conv1[1].weight, second.conv1[1].weight)


@pytest.mark.slow
def test_what_a_process_has_to_say_is_said_in_its_words(store):
    with pytest.raises(HptError, match=r"^the loss became .* lower learning_rate") as caught:
        hpt_mlflow.pretrain(**(PRETRAIN | {"steps": 30, "learning_rate": 1e30}), nproc=2)
    assert "\n" not in str(caught.value)
    (run,) = runs()
    assert run.info.status == "FAILED"
    with pytest.raises(HptError, match="^batch_size: 31 images cannot be shared equally by 2 processes"):
        hpt_mlflow.pretrain(**(PRETRAIN | {"batch_size": 31}), nproc=2)
    assert len(runs()) == 1
