"""What a user does: the real `mlflow run`, against a real sqlite store."""

import base64
import contextlib
import csv
import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pytest
import requests
from click.testing import CliRunner
from mlflow.projects.utils import load_project
from mlflow.tracking import MlflowClient
from mlflow_runs import ROOT, command, environment, mlflow_run, newest
from processes import PATIENCE_SECONDS, wait_for
from scenes import digits, write_digits

from hpt_mlflow.cli import hpt as hpt_command

LISTENING = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execvp(sys.argv[1], sys.argv[1:])"
NETWORK = {"arch": "resnet18", "image_size": 16, "batch_size": 32}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, empty_database):
    """A folder with an MLflow store of its own."""
    folder = tmp_path_factory.mktemp("chain")
    shutil.copy(empty_database, folder / "mlflow.db")
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    yield folder
    mlflow.set_tracking_uri(None)


@pytest.fixture(scope="module")
def chain(workplace):
    """Pretrain, adapt and evaluate on a folder where the user stands; gives the runs by stage."""
    write_digits(workplace / "digits")
    runs = {}
    for stage, parameters in {
        "pretrain": {"data": "digits", "steps": 6, "milestones": "50%", "alias": "base", **NETWORK},
        "adapt": {
            "data": "digits",
            "steps": 4,
            "update": "bn",
            "batch_size": 32,
            "checkpoint_every": 2,
            "judge": "none",
        },
        "evaluate": {"data": "digits"},
    }.items():
        done = mlflow_run(workplace, stage, **parameters)
        assert done.returncode == 0, done.stderr
        runs[stage] = newest(stage)
    return runs


def test_every_stage_finishes_under_a_name_that_says_what_it_is(chain):
    assert {run.info.status for run in chain.values()} == {"FINISHED"}
    assert chain["pretrain"].info.run_name == "pretrain digits"
    assert chain["adapt"].info.run_name == "adapt digits < digits"
    assert chain["evaluate"].info.run_name == "evaluate digits: digits > digits"


def test_each_stage_starts_from_the_version_that_the_one_before_registered(chain):
    assert chain["pretrain"].data.tags["hpt.model"] == "models:/hpt/1"
    assert chain["adapt"].data.tags["hpt.parent_model"] == "models:/hpt/1"
    assert chain["adapt"].data.tags["hpt.model"] == "models:/hpt/2"
    assert chain["evaluate"].data.tags["hpt.parent_model"] == "models:/hpt/2"
    client = MlflowClient()
    assert client.get_model_version_by_alias("hpt", "base").version == 1
    version = client.get_model_version("hpt", "2")
    assert version.tags["hpt.chain"] == "digits > digits"
    assert version.tags["hpt.parent_model"] == "models:/hpt/1"
    assert version.tags["hpt.update"] == "bn"


def test_adapting_batch_norm_alone_leaves_everything_else_bit_equal(chain):
    import torch
    from safetensors.torch import load_file

    before, after = (
        load_file(next(Path(mlflow.artifacts.download_artifacts(f"models:/hpt/{version}")).rglob("*.safetensors")))
        for version in (1, 2)
    )
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert not {name for name in changed if "bn" not in name and "downsample.1" not in name}


def test_metrics_have_the_same_names_and_steps_in_every_stage(chain):
    client = MlflowClient()
    for stage, steps in (("pretrain", 6), ("adapt", 4)):
        history = client.get_metric_history(chain[stage].info.run_id, "train/loss")
        assert [metric.step for metric in history] == list(range(1, steps + 1))
        expected = "loss top1 learning_rate images_per_second embedding_std effective_rank".split()
        assert {f"train/{name}" for name in expected} <= set(chain[stage].data.metrics)
    evaluated = chain["evaluate"].data.metrics
    names = "test/accuracy test/balanced_accuracy knn/test_accuracy probe/val_accuracy random/accuracy".split()
    assert set(names) <= set(evaluated)
    assert all(0 <= evaluated[name] <= 1 for name in names)


def test_milestones_are_logged_models_with_their_metrics(chain):
    models = mlflow.search_logged_models(
        experiment_ids=["0"], filter_string=f"source_run_id = '{chain['pretrain'].info.run_id}'", output_format="list"
    )
    assert {model.name for model in models} == {"step-3", "step-6"}
    for model in models:
        assert {metric.key for metric in model.metrics} >= {"knn/val_accuracy"}
    tested = mlflow.search_logged_models(
        experiment_ids=["0"], filter_string="metrics.`test/accuracy` >= 0", output_format="list"
    )
    assert [model.source_run_id for model in tested] == [chain["adapt"].info.run_id]


def test_a_run_shows_settings_dataset_pictures_and_how_to_go_on(chain):
    run = chain["pretrain"]
    assert run.data.params["settings/batch_size"] == "32"
    assert run.data.params["settings/arch"] == "resnet18"
    (dataset,) = run.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("digits", run.data.tags["hpt.dataset_digest"])
    assert json.loads(dataset.dataset.profile)["images"] == 300
    card = run.data.tags["mlflow.note.content"]
    assert f"mlflow run {ROOT} --env-manager local -e adapt -P parent=models:/hpt/1 -P data=FOLDER" in card
    client = MlflowClient()
    files = {stage: {f.path for f in client.list_artifacts(one.info.run_id)} for stage, one in chain.items()}
    assert {"views.png", "learning_curves.png"} <= files["pretrain"]
    assert "training_state" in files["adapt"]
    assert "confusion_matrix.png" in files["evaluate"]


def test_training_never_sees_the_test_images(chain):
    profile = json.loads(chain["evaluate"].inputs.dataset_inputs[0].dataset.profile)
    for stage in ("pretrain", "adapt"):
        card = chain[stage].data.tags["mlflow.note.content"]
        assert f"{profile['train'] + profile['validation']:,} images seen, {profile['test']:,} kept for test" in card


def test_relative_paths_start_where_the_user_stands(chain, workplace):
    (source,) = chain["pretrain"].inputs.dataset_inputs
    assert source.dataset.name == "digits"
    assert json.loads(source.dataset.source) == {"uri": f"folder:{workplace}/digits"}


def test_an_empty_dataset_is_refused_and_not_taken_for_the_default(store):
    """As `mlflow run` writes the command."""
    entry = load_project(ROOT).get_entry_point("pretrain")
    words = shlex.split(entry.compute_command({"data": "", "working_dir": os.getcwd()}, None))
    assert words[:4] == ["python", "-m", "entrypoints.pretrain", "--working-dir"]
    done = CliRunner().invoke(hpt_command, ["pretrain", *words[5:]])
    assert done.exit_code != 0
    assert "data: it is empty" in done.output


@pytest.mark.slow
def test_a_registered_model_answers_mlflow_models_predict(chain, workplace):
    images = np.random.default_rng(0).integers(0, 255, (2, 8, 8, 3)).tolist()
    (workplace / "images.json").write_text(json.dumps({"inputs": images}))
    words = "mlflow models predict -m models:/hpt/2 -i images.json -o out.json -t json --env-manager local".split()
    done = subprocess.run(words, check=False, cwd=workplace, env=environment(workplace), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    embeddings = np.array(json.loads((workplace / "out.json").read_text())["predictions"])
    assert embeddings.shape == (2, 512)


def hpt(folder, *words):
    words = ["hpt", *words]
    return subprocess.run(words, check=False, cwd=folder, env=environment(folder), capture_output=True, text=True)


@pytest.mark.slow
def test_the_better_model_is_found_promoted_and_put_to_work(chain, workplace):
    evaluated = hpt(workplace, "evaluate", "--model", "models:/hpt/1", "--data", "digits")
    assert evaluated.returncode == 0, evaluated.stderr
    compared = hpt(workplace, "compare", "models:/hpt/1", "models:/hpt/2")
    assert compared.returncode == 0, compared.stderr
    assert "McNemar" in compared.stdout
    assert hpt(workplace, "promote", "models:/hpt/1").returncode == 0
    # Worse than this margin no model can be.
    promoted = hpt(workplace, "promote", "models:/hpt/2", "--margin", "1")
    assert promoted.returncode == 0, promoted.stderr
    assert MlflowClient().get_model_version_by_alias("hpt", "champion").version == 2
    assert chain["evaluate"].data.tags["hpt.classifier"] == "models:/hpt-classifier/1"
    assert MlflowClient().get_model_version_by_alias("hpt-classifier", "champion").version == 1
    tree = hpt(workplace, "lineage", "models:/hpt@champion").stdout
    assert tree.index("models:/hpt/2") < tree.index("models:/hpt/1") < tree.index("random weights")

    folder = workplace / "new"
    folder.mkdir()
    for i, (image, _) in enumerate(digits(5)):
        image.save(folder / f"{i}.png")
    (folder / "broken.png").write_bytes(b"no image")
    predicted = hpt(workplace, "predict", "models:/hpt-classifier@champion", str(folder))
    assert predicted.returncode == 0, predicted.stderr
    rows = list(csv.DictReader((workplace / "predictions.csv").open()))
    assert [row["image"] for row in rows] == ["0.png", "1.png", "2.png", "3.png", "4.png", "broken.png"]
    assert all(row["label"] in list("0123456789") for row in rows[:5])
    assert rows[5]["label"] == ""
    assert rows[5]["error"]


@pytest.mark.slow
def test_the_real_server_answers_png_and_jpeg_with_labels_and_probabilities(chain, workplace, unused_port):
    words = f"mlflow models serve -m models:/hpt-classifier/1 --env-manager local --port {unused_port}".split()
    log = workplace / "server.log"
    with log.open("w") as output:
        server = subprocess.Popen(
            words, cwd=workplace, env=environment(workplace), stdout=output, stderr=output, start_new_session=True
        )
    address = f"http://127.0.0.1:{unused_port}"
    try:
        wait_until_it_answers(f"{address}/ping", server)
        for kind in ("PNG", "JPEG"):
            files = []
            for image, _ in digits(3):
                buffer = io.BytesIO()
                image.save(buffer, kind)
                files.append(base64.b64encode(buffer.getvalue()).decode())
            answer = requests.post(f"{address}/invocations", json={"inputs": files}, timeout=60)
            assert answer.status_code == 200, answer.text
            for row in answer.json()["predictions"]:
                assert set(row["probabilities"]) == set("0123456789")
                assert row["label"] == max(row["probabilities"], key=row["probabilities"].get)
                assert row["probability"] == pytest.approx(row["probabilities"][row["label"]])
                assert sum(row["probabilities"].values()) == pytest.approx(1)
        broken = requests.post(f"{address}/invocations", json={"inputs": ["bm8gaW1hZ2U="]}, timeout=60)
        assert broken.status_code == 400
        assert "image 0 cannot be read" in broken.text
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def wait_until_it_answers(address, server):
    def answers():
        with contextlib.suppress(requests.ConnectionError):
            return requests.get(address, timeout=10).status_code == 200

    wait_for(answers, server)


def test_a_mistake_is_one_line_and_leaves_no_run_running(chain, workplace):
    done = mlflow_run(workplace, "adapt", parent="models:/hpt/77")
    assert done.returncode != 0
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert errors == ["Error: parent: 'hpt' has no version '77'; it has 1, 2"]
    assert "Traceback" not in done.stderr
    statuses = {run.info.status for run in mlflow.search_runs(search_all_experiments=True, output_format="list")}
    assert statuses == {"FINISHED", "FAILED"}


# In one process, by tests/test_cli.py and tests/stages/training/test_resume.py.
@pytest.mark.slow
def test_ctrl_c_ends_the_run_killed_with_its_metrics(workplace):
    parameters = {"data": "builtin:digits", "steps": 100_000, "compile": "off", "model_name": "endless", **NETWORK}

    process = subprocess.Popen(
        # A shell without job control hands SIGINT on as ignored, and children inherit that.
        [sys.executable, "-c", LISTENING, *command("pretrain", **parameters)],
        cwd=workplace,
        env=environment(workplace),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    client = MlflowClient()

    def run():
        found = mlflow.search_runs(
            search_all_experiments=True, filter_string="params.model_name = 'endless'", output_format="list"
        )
        return found[0] if found else None

    wait_for(lambda: run() and client.get_metric_history(run().info.run_id, "train/loss"), process)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(PATIENCE_SECONDS) != 0
    wait_for(lambda: run().info.status == "KILLED")
    assert client.get_metric_history(run().info.run_id, "train/loss")


@pytest.mark.slow
def test_main_runs_the_three_stages_as_nested_runs(tmp_path):
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    done = mlflow_run(tmp_path, "main", base="builtin:digits", target="builtin:digits", base_steps=2, adapt_steps=2)
    assert done.returncode == 0, done.stderr
    runs = mlflow.search_runs(search_all_experiments=True, output_format="list")
    (parent,) = [run for run in runs if run.data.tags["hpt.stage"] == "main"]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert {run.data.tags["hpt.stage"] for run in children} == {"pretrain", "adapt", "evaluate"}
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert parent.data.metrics["test/accuracy"] > 0.2
