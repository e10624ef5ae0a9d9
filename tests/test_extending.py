"""docs/extending.md: its examples, as one package that is installed beside this one, run by the `hpt` command."""

import os
import re
import shutil
import subprocess
import sys

import mlflow
import numpy as np
import pytest
from pages import ROOT, write_examples

TINY = "--arch tiny --image-size 16 --batch-size 16 --precision float32 --compile off --steps 2"


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A folder with my_package, as pip would install it, and with images for its reader."""
    folder = tmp_path_factory.mktemp("site")
    write_examples(folder)
    rng = np.random.default_rng(0)
    labels = np.arange(80) % 2
    images = (rng.integers(0, 100, (80, 20, 20, 3)) + 100 * labels[:, None, None, None]).astype(np.uint8)
    np.savez(folder / "shades.npz", images=images, labels=labels)
    return folder


@pytest.fixture
def hpt(package, tmp_path, empty_database):
    """Run `hpt WORDS` with the package installed; gives what it prints."""
    variables = {
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
        "HPT_CACHE": str(tmp_path / "cache"),
        "HPT_SPOOL": str(tmp_path / "spool"),
        "PYTHONPATH": os.pathsep.join([str(package), str(ROOT)]),
    }
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    mlflow.set_tracking_uri(variables["MLFLOW_TRACKING_URI"])

    def run(words):
        command = [sys.executable, "-c", "from hpt_mlflow.cli import hpt; hpt()", *words.split()]
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, env=os.environ | variables, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    return run


@pytest.mark.slow
def test_a_chain_and_a_search_run_on_examples_of_another_package(hpt, package):
    data = f"npz:{package}/shades.npz"
    hpt(f"pretrain --data {data} --method barlow-twins --redundancy 0.02 {TINY}")
    hpt(f"adapt --data {data} --method barlow-twins --update bn --nproc 2 {TINY.replace('--arch tiny', '')}")
    hpt(f"evaluate --data {data} --protocol nearest-centroid")
    search = "--parent models:/hpt/1 --objective nearest --augment crop --adapt-winner false --workers 1"
    hpt(f"tune --data {data} {search} {TINY.replace('--arch tiny', '')}")
    runs = {run.data.tags["hpt.stage"]: run for run in mlflow.search_runs(output_format="list")}
    assert set(runs) == {"pretrain", "adapt", "evaluate", "tune", "trial"}
    assert runs["pretrain"].data.params["settings/redundancy"] == "0.02"
    assert runs["adapt"].data.tags["hpt.method"] == "barlow-twins"
    assert "**Method** Barlow Twins, tiny at 16 px" in runs["adapt"].data.tags["mlflow.note.content"]
    assert runs["evaluate"].data.metrics["test/accuracy"] == runs["tune"].data.metrics["tune/best_score"] == 1


@pytest.mark.slow
def test_a_study_of_another_package_is_planned(hpt):
    said = hpt(
        "study --study learning-rate --base builtin:digits --images 64 --seeds 1 --base-steps 2 "
        f"--workers 0 --dry-run {TINY}"
    )
    assert "3 trainings of 6 optimiser steps together, 2 evaluations." in said


def test_a_stage_of_another_package_is_a_command(hpt):
    assert re.search(r"data/images +1797", hpt("audit --data builtin:digits"))
    (run,) = mlflow.search_runs(output_format="list")
    assert (run.data.tags["hpt.stage"], run.data.metrics["data/classes"], run.info.status) == ("audit", 10, "FINISHED")


def test_a_package_that_cannot_be_loaded_is_named_and_left_out(hpt, package):
    info = package / "broken-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[hpt_mlflow.plugins]\nbroken = no_such_module:register\n")
    try:
        said = hpt("audit --help")
        assert "the plugin no_such_module:register cannot be loaded (No module named" in said
        # The others are there.
        assert "How many images and classes a dataset has." in said
    finally:
        (info / "entry_points.txt").unlink()
