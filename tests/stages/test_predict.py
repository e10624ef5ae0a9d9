from __future__ import annotations

import csv
import os
import shutil
import stat

import mlflow
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from hpt_mlflow.cli import hpt
from hpt_mlflow.data import squares
from hpt_mlflow.errors import HptError
from hpt_mlflow.models.architecture import Architecture
from hpt_mlflow.models.backbone import build_backbone
from hpt_mlflow.models.checkpoint import BackboneCard
from hpt_mlflow.models.classifier import ClassifierCard
from hpt_mlflow.stages import predict as predict_module
from hpt_mlflow.stages.predict import predict
from hpt_mlflow.tracking.models.store import log_backbone, log_classifier
from hpt_mlflow.tracking.runs.stage_run import stage_run
from hpt_mlflow.tracking.tags import CLASSIFIER_NAME

CARD = BackboneCard(Architecture("shufflenet_v2_x0_5", 32), 1024, (0.5,) * 3, (0.25,) * 3, ("mnist",), 5)
CLASSES = ("Katze", "犬", 'a "b", c')


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return build_backbone(Architecture("shufflenet_v2_x0_5", 32))[0]


def head():
    """One that tells noise apart."""
    weight = torch.randn(1024, 3, generator=torch.Generator().manual_seed(0))
    return {"mean": torch.zeros(1024), "std": torch.full((1024,), 1e-2), "weight": weight, "bias": torch.zeros(3)}


@pytest.fixture(scope="module")
def registry(backbone, empty_database, tmp_path_factory):
    """A store with hpt-classifier@classes (version 1) and hpt-classifier@labels (2), and models:/hpt/1, a backbone."""
    folder = tmp_path_factory.mktemp("registry")
    database = shutil.copy(empty_database, folder / "mlflow.db")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        patched.setenv("HPT_SPOOL", str(folder / "spool"))
        mlflow.set_tracking_uri(f"sqlite:///{database}")
        with stage_run("evaluate pets") as run:
            log_classifier(run, backbone, CARD, head(), ClassifierCard(CLASSES, False, "pets", "fast"), {})
            run.register(CLASSIFIER_NAME, "hpt-classifier", {}, "classes", "")
        with stage_run("evaluate lungs") as run:
            log_classifier(run, backbone, CARD, head(), ClassifierCard(CLASSES, True, "lungs", "paper", 37), {})
            run.register(CLASSIFIER_NAME, "hpt-classifier", {}, "labels", "")
            log_backbone(run, backbone, CARD, {})
            run.register("step-5", "hpt", {}, None, "")
        mlflow.set_tracking_uri(None)
        mlflow.set_registry_uri("")
        os.environ.pop("MLFLOW_REGISTRY_URI", None)
    return database


@pytest.fixture
def registered(registry, store, tmp_path):
    shutil.copy(registry, tmp_path / "mlflow.db")


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("b/2.png", "a.png", "b/1.png", "ü,'.png"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(tmp_path / "images" / name)
    return tmp_path / "images"


def rows_of(file):
    with open(file, newline="", encoding="utf-8") as opened:
        return list(csv.DictReader(opened))


def by_hand(backbone, folder, names, activation):
    """Of images that need no cropping."""
    images = np.stack([np.asarray(Image.open(folder / name)) for name in names])
    batch = torch.from_numpy((images / 255 - 0.5) / 0.25).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        logits = backbone.eval()(batch) / 1e-2 @ head()["weight"]
    return activation(logits.double()).numpy()


def test_every_image_gets_a_line_in_the_order_of_the_dataset(registered, backbone, folder, tmp_path):
    assert predict("models:/hpt-classifier/1", str(folder), tmp_path / "out.csv", "cpu") == (4, 0)
    rows = rows_of(tmp_path / "out.csv")
    names = [row["image"] for row in rows]
    assert names == ["a.png", "b/1.png", "b/2.png", "ü,'.png"]
    assert list(rows[0]) == ["image", "label", "probability", "error", *(f"p({name})" for name in CLASSES)]
    expected = by_hand(backbone, folder, names, lambda logits: logits.softmax(dim=1))
    found = np.array([[float(row[f"p({name})"]) for name in CLASSES] for row in rows])
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert [row["label"] for row in rows] == [CLASSES[i] for i in expected.argmax(axis=1)]
    np.testing.assert_allclose([float(row["probability"]) for row in rows], expected.max(axis=1), atol=1e-3)
    assert {row["error"] for row in rows} == {""}


def test_labels_are_those_of_at_least_a_half(registered, folder, tmp_path):
    assert predict("labels", str(folder), tmp_path / "out.csv", "cpu") == (4, 0)
    rows = rows_of(tmp_path / "out.csv")
    assert list(rows[0]) == ["image", "labels", "error", *(f"p({name})" for name in CLASSES)]
    for row in rows:
        assert row["labels"] == ";".join(name for name in CLASSES if float(row[f"p({name})"]) >= 0.5)
    assert len({row["labels"] for row in rows}) > 1


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_unreadable_images_have_a_reason_and_leave_the_others_their_answers(
    registered, folder, tmp_path, monkeypatch, batch
):
    predict("classes", str(folder), tmp_path / "whole.csv", "cpu")
    (folder / "a0.png").write_bytes(b"no picture")
    (folder / "b" / "11.jpg").write_bytes(b"")
    monkeypatch.setattr(predict_module, "BATCH_SIZE", batch)
    assert predict("classes", str(folder), tmp_path / "out.csv", "cpu") == (4, 2)
    rows = {row["image"]: row for row in rows_of(tmp_path / "out.csv")}
    whole = {row["image"]: row for row in rows_of(tmp_path / "whole.csv")}
    for name in ("a0.png", "b/11.jpg"):
        row = rows.pop(name)
        assert "UnidentifiedImageError" in row["error"]
        assert {value for column, value in row.items() if column not in ("image", "error")} == {""}
    assert rows.keys() == whole.keys()
    for name, row in rows.items():
        assert row["label"] == whole[name]["label"]
        assert float(row["probability"]) == pytest.approx(float(whole[name]["probability"]), abs=1e-4)


def test_a_folder_of_nothing_readable_is_a_table_of_reasons(registered, tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.png").write_bytes(b"no")
    assert predict("classes", str(tmp_path / "bad"), tmp_path / "out.csv", "cpu") == (0, 1)
    assert rows_of(tmp_path / "out.csv")[0]["label"] == ""


def test_large_photographs_are_reduced_when_they_are_read(registered, tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    gradient = np.linspace(0, 255, 2400 * 3000).reshape(2400, 3000).astype(np.uint8)
    Image.fromarray(gradient).save(tmp_path / "photos" / "1.jpg")
    sizes, decode = [], squares.decode

    def measured(*arguments):
        image = decode(*arguments)
        sizes.append(image.shape)
        return image

    monkeypatch.setattr(squares, "decode", measured)
    for model, side in (("classes", 32), ("labels", 131)):
        predict(model, str(tmp_path / "photos"), tmp_path / "out.csv", "cpu")
        assert min(sizes.pop()[:2]) <= side


def test_an_older_file_is_replaced_and_its_neighbours_are_left(registered, folder, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "out.csv").write_text("old")
    (tmp_path / "out" / "other.csv").write_text("other")
    predict("classes", str(folder), tmp_path / "out" / "out.csv", "cpu")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["other.csv", "out.csv"]
    assert len(rows_of(tmp_path / "out" / "out.csv")) == 4
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE((tmp_path / "out" / "out.csv").stat().st_mode) == 0o666 & ~mask


@pytest.mark.parametrize("error", [KeyboardInterrupt, HptError("broken"), OSError(28, "No space left on device")])
def test_what_fails_on_the_way_leaves_the_old_file_and_no_rest(registered, folder, tmp_path, monkeypatch, error):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "out.csv").write_text("old")

    def fail(*_):
        raise error

    monkeypatch.setattr(squares, "decode", fail)
    with pytest.raises((KeyboardInterrupt, HptError)) as caught:
        predict("classes", str(folder), tmp_path / "out" / "out.csv", "cpu")
    if isinstance(error, OSError):
        assert str(caught.value) == f"cannot write {tmp_path}/out/out.csv: No space left on device"
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["out.csv"]
    assert (tmp_path / "out" / "out.csv").read_text() == "old"


def test_a_backbone_is_refused_with_the_command_that_makes_a_classifier(registered, folder, tmp_path):
    with pytest.raises(HptError, match="models:/hpt/1 is a backbone without classes; hpt evaluate --model models:/hpt"):
        predict("models:/hpt/latest", str(folder), tmp_path / "out.csv", "cpu")
    assert not (tmp_path / "out.csv").exists()


def run(*arguments):
    return CliRunner().invoke(hpt, ["predict", *(str(argument) for argument in arguments), "--device", "cpu"])


def test_the_command_says_what_it_has_written(registered, folder, tmp_path):
    (folder / "a0.png").write_bytes(b"no picture")
    result = run("hpt-classifier@classes", folder)
    assert result.exit_code == 0, result.output
    assert result.output.strip().endswith(
        "predictions.csv: 4 images classified; 1 could not be read, see the column error"
    )
    assert len(rows_of(tmp_path / "predictions.csv")) == 5
    (folder / "a0.png").unlink()
    assert run("classes", folder, "--output", "x.csv").output.strip() == "x.csv: 4 images classified"


@pytest.mark.parametrize(
    ("model", "data", "output", "words"),
    [
        ("models:/hpt/1", "images", "out.csv", "is a backbone without classes"),
        ("nobody", "images", "out.csv", "model: the registered model 'hpt-classifier' has no alias 'nobody'"),
        ("models:/hpt-classifier/9", "images", "out.csv", "model: 'hpt-classifier' has no version '9'"),
        ("classes", "nowhere", "out.csv", "data: there is no folder"),
        ("classes", "images", "nowhere/out.csv", "cannot write nowhere/out.csv: No such file or directory"),
        ("classes", "images", "images/a.png/out.csv", "cannot write images/a.png/out.csv: Not a directory"),
    ],
)
def test_what_cannot_be_is_one_line(registered, folder, tmp_path, model, data, output, words):
    before = sorted(tmp_path.rglob("*.csv"))
    result = run(model, data, "--output", output)
    assert result.exit_code == 1
    (line,) = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    assert words in line
    assert "Traceback" not in result.output
    assert sorted(tmp_path.rglob("*.csv")) == before


def test_an_output_that_is_a_folder_is_refused_at_once(registered, folder):
    result = run("classes", folder, "--output", folder)
    assert result.exit_code == 2
    assert "is a directory" in result.output
