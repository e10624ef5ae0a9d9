import json

import mlflow
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torchvision
from PIL import Image

import hpt_mlflow
from hpt_mlflow.data.parquet_parts import ParquetParts
from hpt_mlflow.errors import HptError
from hpt_mlflow.stages import embed as stage
from hpt_mlflow.tracking.addresses import model_id_of


@pytest.fixture
def model(store, tmp_path):
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "random.pth")
    return hpt_mlflow.import_weights(str(tmp_path / "random.pth"), image_size=32).model_uri


def features(table):
    return np.array(table["features"].to_pylist(), np.float32)


def predicted(uri, folder, table):
    images = [np.asarray(Image.open(folder / path)) for path in table["path"].to_pylist()]
    return mlflow.pyfunc.load_model(uri).predict(np.stack(images))


def test_each_image_has_a_row_with_the_features_that_the_model_serves(model, folder, tmp_path):
    file = tmp_path / "table.parquet"
    result = hpt_mlflow.embed(data=str(folder), model=model, to=str(file), batch_size=16)
    table = pq.read_table(file)
    assert table.column_names == ["path", "label", "error", "features"]
    assert table["path"].to_pylist()[0] == "cat/01.png"
    assert table["label"].to_pylist() == ["cat"] * 20 + ["dog"] * 20
    assert table["error"].null_count == 40
    np.testing.assert_allclose(features(table), predicted(model, folder, table), atol=1e-4)
    about = json.loads(table.schema.metadata[b"hpt_mlflow"])
    assert (about["model"], about["chain"], about["data"]) == ("models:/hpt/1", ["random"], "images")
    assert (result.metrics["embed/images"], result.metrics["embed/unreadable"]) == (40, 0)
    run = mlflow.get_run(result.run_id)
    assert [found.model_id for found in run.inputs.model_inputs] == [model_id_of(model)]
    assert str(file) in run.data.tags["mlflow.note.content"]
    assert not list(tmp_path.glob("*.parts"))


def test_a_classifier_says_what_it_sees(model, folder, tmp_path):
    classifier = hpt_mlflow.evaluate(model=model, data=str(folder)).classifier_uri
    hpt_mlflow.embed(data=str(folder), model=classifier, to=str(tmp_path / "a.parquet"))
    table = pq.read_table(tmp_path / "a.parquet")
    said = predicted(classifier, folder, table)
    assert table["prediction"].to_pylist() == list(said["label"])
    np.testing.assert_allclose(table["probability"], said["probability"], atol=1e-4)
    assert json.loads(table.schema.metadata[b"hpt_mlflow"])["classes"] == ["cat", "dog"]
    np.testing.assert_allclose(np.array(table["probabilities"].to_pylist()).sum(axis=1), 1, atol=1e-6)


def test_an_image_that_cannot_be_read_says_why(model, folder, tmp_path):
    (folder / "dog" / "00.png").write_bytes(b"no picture")
    result = hpt_mlflow.embed(data=str(folder), model=model, to=str(tmp_path / "a.parquet"), batch_size=7)
    table = pq.read_table(tmp_path / "a.parquet")
    position = table["path"].to_pylist().index("dog/00.png")
    assert "UnidentifiedImageError" in table["error"][position].as_py()
    assert table["features"][position].as_py() is None
    assert table["features"].null_count == 1
    assert result.metrics["embed/unreadable"] == 1


def test_float16_and_patches(model, folder, tmp_path):
    to = tmp_path / "a.parquet"
    hpt_mlflow.embed(data=str(folder), model=model, to=str(to), dtype="float16", patches=True)
    table = pq.read_table(to)
    assert str(table.schema.field("features").type) == "list<element: halffloat>"
    shape = json.loads(table.schema.metadata[b"hpt_mlflow"])["patches"]
    assert shape == {"height": 1, "width": 1, "channels": 512}
    maps = np.array(table["patches"].to_pylist(), np.float32).reshape(40, -1, 512)
    np.testing.assert_allclose(maps.mean(axis=1), features(table), atol=1e-2)


def test_patches_stay_with_their_images_where_memory_is_short(model, folder, tmp_path, monkeypatch):
    settings = {"data": str(folder), "model": model, "patches": True, "batch_size": 16}
    hpt_mlflow.embed(**settings, to=str(tmp_path / "whole.parquet"))

    class Small(stage.FrozenNetwork):
        """Has memory for 5 images."""

        def __init__(self, backbone):
            super().__init__(backbone)
            self.network.register_forward_hook(self.limit)

        def limit(self, network, inputs, output):
            if len(output) > 5:
                raise torch.OutOfMemoryError

    monkeypatch.setattr(stage, "FrozenNetwork", Small)
    hpt_mlflow.embed(**settings, to=str(tmp_path / "halves.parquet"))
    whole, halves = (
        np.array(pq.read_table(tmp_path / name)["patches"].to_pylist()) for name in ("whole.parquet", "halves.parquet")
    )
    np.testing.assert_allclose(halves, whole, atol=1e-5)


def test_an_interrupted_command_goes_on_where_it_was(model, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "PART_ROWS", 8)
    settings = {"data": str(folder), "model": model, "batch_size": 4}
    hpt_mlflow.embed(**settings, to=str(tmp_path / "whole.parquet"))
    with monkeypatch.context() as patched:
        add = ParquetParts.add

        def add_three(parts, table):
            if parts.done == 3:
                raise KeyboardInterrupt
            add(parts, table)

        patched.setattr(ParquetParts, "add", add_three)
        with pytest.raises(KeyboardInterrupt):
            hpt_mlflow.embed(**settings, to=str(tmp_path / "a.parquet"))
    assert not (tmp_path / "a.parquet").exists()
    assert mlflow.search_runs(output_format="list")[0].info.status == "KILLED"
    # What is there is not read again.
    done = tmp_path / "a.parquet.parts" / "000000.parquet"
    first = pq.read_table(done)
    pq.write_table(first.set_column(0, "path", [["marked"] * 8]), done)
    hpt_mlflow.embed(**settings, to=str(tmp_path / "a.parquet"))
    table, whole = (pq.read_table(tmp_path / name) for name in ("a.parquet", "whole.parquet"))
    assert table["path"].to_pylist()[:8] == ["marked"] * 8
    assert table.drop_columns("path").equals(whole.drop_columns("path"))
    assert pq.ParquetFile(tmp_path / "a.parquet").num_row_groups == 5


def test_other_work_starts_anew(tmp_path):
    parts = ParquetParts(tmp_path / "a.parquet", {"model": 1})
    parts.add(pa.table({"path": ["a"]}))
    assert ParquetParts(tmp_path / "a.parquet", {"model": 1}).done == 1
    assert ParquetParts(tmp_path / "a.parquet", {"model": 2}).done == 0


def test_what_cannot_be_done_is_said_before_a_run_is_started(model, folder, tmp_path):
    with pytest.raises(HptError, match=r"^to: .*table.parquet cannot be written \(Not a directory\)"):
        hpt_mlflow.embed(data=str(folder), model=model, to=str(folder / "dog" / "00.png" / "table.parquet"))
    with pytest.raises(HptError, match="no registered model 'nothing'"):
        hpt_mlflow.embed(data=str(folder), model="models:/nothing/1")
    assert len(mlflow.search_runs(output_format="list")) == 1
