"""What a study refuses before it starts anything, and what it says that it would run."""

from __future__ import annotations

import re
import shutil
from collections import Counter

import mlflow
import pytest
import torch
from colours import write_colours
from mlflow.tracking import MlflowClient

import hpt_mlflow
from hpt_mlflow.errors import HptError
from hpt_mlflow.settings import StudySettings
from hpt_mlflow.stages.studies import cost as study_cost
from hpt_mlflow.stages.studies.checks import check_processes
from hpt_mlflow.stages.study import study

SMALL = {
    "base": "builtin:digits",
    "target": "builtin:digits",
    "seeds": 1,
    "steps": 10,
    "batch_size": 8,
    "image_size": 8,
}


@pytest.fixture(autouse=True)
def quick_trials(monkeypatch):
    """A dry run's trials of trainings, which test_study_cost makes, take seconds each."""
    monkeypatch.setattr(study_cost, "_try", lambda *_: 0.1)
    monkeypatch.setattr(study_cost, "_seconds_to_start", lambda: 1.0)


@pytest.fixture
def folder(tmp_path):
    """Images without labels."""
    for number in range(4):
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "images" / f"{number}.png").write_bytes(b"never decoded")
    return tmp_path / "images"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"base": "/nowhere"}, "base: there is no folder /nowhere"),
        ({"source": "/nowhere"}, "source: there is no folder /nowhere"),
        ({"target": "/nowhere"}, "target: there is no folder /nowhere"),
        ({"target": "csw:x"}, "target: unknown kind of dataset 'csw'"),
        ({"base_model": "models:/nothing/1"}, "base_model: "),
        ({"milestones": "5,11"}, "milestones: 11 is not within the 10 steps"),
        ({"study": "semi-supervised", "labels": "100%,9"}, "labels: 9 images cannot hold one of each of 10 classes"),
        ({"study": "semi-supervised", "labels": "9000"}, "labels: 9000 is more than the 10"),
        ({"batch_size": 2000}, "batch_size: 2000 is more than the 14"),
        ({"bn_splits": 5}, "bn_splits: 5 parts of a batch of 8"),
        ({"images": "5000"}, "images: 5000 is more than the 14"),
        ({"images": "7"}, "batch_size: 8 is more than the 7 images"),
        ({"arch": "convnext_tiny", "image_size": 32}, "arch: convnext_tiny has no BatchNorm layers"),
        ({"arch": "densenet121", "image_size": 32, "method": "dino"}, "arch: dino also has views of 14 pixels"),
        ({"arch": "resnet19"}, "arch: "),
        ({"device": "cuda:99"}, "device: cuda:99 is not available"),
        ({"device": "cpu", "cuda_graph": "on"}, "cuda_graph: .* as the device is cpu"),
        ({"device": "cpu:0", "nproc": 2, "batch_size": 8}, "nproc: 2 processes cannot share cpu:0"),
        ({"study": "data-amount", "amounts": "100%,100000"}, "amounts: 100000 is more than the 14"),
        ({"study": "data-amount", "amounts": "0.01%"}, "digits leaves 1 images to learn from; at least 2 are needed"),
    ],
)
def test_what_cannot_be_done_is_said_at_once_and_starts_no_run(store, settings, words):
    with pytest.raises(HptError, match=words) as caught:
        study(**SMALL | settings)
    assert "\n" not in str(caught.value)
    assert MlflowClient().search_runs(["0"]) == []


def test_a_base_with_test_images_of_the_target_in_it_is_refused(store, tmp_path):
    target = write_colours(tmp_path / "all" / "own")
    write_colours(tmp_path / "all" / "other", seed=1)
    settings = SMALL | {"base": str(tmp_path / "all"), "target": str(target), "batch_size": 2}
    with pytest.raises(HptError, match="target: .* test images of own are also among the images of all that") as caught:
        study(**settings)
    assert "\n" not in str(caught.value)
    assert MlflowClient().search_runs(["0"]) == []
    # On its own it is fine, and so is the same dataset for both.
    for base in (tmp_path / "all" / "other", target):
        assert study(**settings | {"base": str(base), "dry_run": True}) is None


def test_a_registered_base_that_has_seen_test_images_of_the_target_is_refused(past, tmp_path):
    started = len(MlflowClient().search_runs(["0"]))
    settings = {"base_model": past.model, "steps": 2, "batch_size": 8, "dry_run": True}
    with pytest.raises(HptError, match="base_model: .* test images of images with seed 1 were trained on") as caught:
        study(**settings, target=str(past.images), seeds=3)
    assert "use --seed 0 --seeds 1, by which it was split there, or a Base that" in str(caught.value)
    flat = tmp_path / "copy"
    flat.mkdir()
    for number, file in enumerate(sorted(past.images.rglob("*.png"), reverse=True)):
        (flat / file.parent.name).mkdir(exist_ok=True)
        shutil.copyfile(file, flat / file.parent.name / f"{number}.png")
    with pytest.raises(HptError, match=r"test images of copy with seed 0 were .*\); use a Base that has not") as caught:
        study(**settings, target=str(flat), seeds=1)
    assert "\n" not in str(caught.value)
    # It may have learned from the target's other images, and from other images than the target's.
    for target in (past.images, write_colours(tmp_path / "other", seed=1)):
        assert study(**settings, target=str(target), seeds=1) is None
    assert len(MlflowClient().search_runs(["0"])) == started


def test_a_target_without_labels_is_refused(store, folder):
    with pytest.raises(HptError, match="target: images has no labels, by which a study compares methods"):
        study(**SMALL | {"target": str(folder)})


@pytest.mark.parametrize(
    "settings",
    [{"milestones": "5,11"}, {"labels": "9"}, {"amounts": "100000"}],
    ids=["milestones", "labels", "amounts"],
)
def test_what_another_study_takes_is_not_looked_at(store, capsys, settings):
    assert study(**SMALL | {"study": "sequential", "source": "builtin:digits", "dry_run": True} | settings) is None
    assert "trainings of" in capsys.readouterr().out


def test_a_dry_run_says_what_would_be_run_and_runs_nothing(store, capsys):
    assert study(**SMALL | {"base_steps": 30, "seeds": 2, "milestones": "50%", "dry_run": True}) is None
    lines = capsys.readouterr().out.splitlines()
    # Base once; on the target its statistics, from random weights, HPT and HPT-BN.
    assert lines[:5] == [
        "2 x pretrain digits: 30 steps",
        "2 x adapt digits < digits, update=bn-stats: 10 steps",
        "2 x pretrain digits: 10 steps",
        "2 x adapt digits < digits, update=all: 10 steps",
        "2 x adapt digits < digits, update=bn: 10 steps",
    ]
    assert lines[5] == "10 trainings of 140 optimiser steps together, 10 evaluations."
    assert re.match(r"About \d+ min for 20 stages, by short trials on this machine", lines[6])
    assert MlflowClient().search_runs(["0"]) == []
    assert mlflow.active_run() is None


def test_the_plan_of_a_study_holds_the_jobs_of_the_study(store):
    settings = SMALL | {"base_steps": 30, "seeds": 2, "milestones": "50%"}
    plan = hpt_mlflow.study_plan(**settings)
    stages = Counter(job.stage for job in plan.jobs)
    assert stages == {"pretrain": 4, "adapt": 6, "evaluate": 10}
    assert {point.method for point in plan.points} >= {"Base", "Target", "HPT", "HPT-BN"}
    with pytest.raises(HptError, match="^target: there is no folder"):
        hpt_mlflow.study_plan(**settings | {"target": "folder:/nowhere"})


def test_trainings_of_several_processes_do_not_share_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for settings in ({"at_once": 2}, {"nproc": 2}):
        check_processes(StudySettings(device="cuda", **settings))
    with pytest.raises(HptError, match="at_once: 2 trainings of 2 processes would share their GPUs; use at_once 1"):
        check_processes(StudySettings(device="cuda", at_once=2, nproc=2))
    with pytest.raises(HptError, match="nproc: 3 processes need as many GPUs"):
        check_processes(StudySettings(device="cuda", nproc=3))


def test_a_registered_base_without_the_small_stem_is_not_compared_with_networks_that_have_it(past):
    with pytest.raises(HptError, match="small_stem: models:/hpt/1 was trained without it; leave it out"):
        study(base_model=past.model, target=str(past.images), small_stem=True)


def test_the_image_size_of_the_base_may_be_named(past, capsys):
    shared = {"base_model": past.model, "target": str(past.images), "seeds": 1, "steps": 2, "batch_size": 8}
    told = []
    for more in ({}, {"image_size": 32}, {"image_size": 40}):
        study(**shared | more, dry_run=True)
        told.append("5 evaluations" in capsys.readouterr().out)
    # At another size, the Base as it is would be another network.
    assert told == [True, True, False]
