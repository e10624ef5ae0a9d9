import json

import mlflow
import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED
from mlflow.tracking import MlflowClient

from hpt_mlflow.data.sources import open_dataset
from hpt_mlflow.data.statistics import ChannelStatistics
from hpt_mlflow.tracking.runs.inputs import log_inputs

STATISTICS = ChannelStatistics((0.3,) * 3, (0.4,) * 3)


def inputs_with(parent):
    dataset = open_dataset("builtin:digits")
    with mlflow.start_run() as run:
        log_inputs(run.info.run_id, dataset, dataset.split(0), STATISTICS, "training", parent)
    return dataset, mlflow.get_run(run.info.run_id).inputs


def test_a_run_shows_digest_sizes_and_statistics_of_its_dataset(store):
    dataset, inputs = inputs_with(None)
    (logged,) = inputs.dataset_inputs
    assert (logged.dataset.name, logged.dataset.digest) == ("digits", dataset.digest)
    assert json.loads(logged.dataset.source) == {"uri": "builtin:digits"}
    profile = json.loads(logged.dataset.profile)
    assert profile["images"] == 1797
    assert profile["train"] + profile["validation"] + profile["test"] == 1797
    assert profile["channel_mean"] == [0.3] * 3
    assert inputs.model_inputs == []


def test_a_run_shows_the_model_that_it_started_from(store):
    model = mlflow.initialize_logged_model("step-5")
    client = MlflowClient()
    client.create_registered_model("hpt")
    client.create_model_version("hpt", f"models:/{model.model_id}", model_id=model.model_id)
    assert [found.model_id for found in inputs_with("models:/hpt/1")[1].model_inputs] == [model.model_id]


def test_a_model_that_may_not_be_named_as_an_input_is_left_out_and_told(store, monkeypatch, caplog):
    model = mlflow.initialize_logged_model("step-5")
    log_inputs_of_mlflow = MlflowClient.log_inputs

    def without_models(client, run_id, datasets, models=None):
        if models:
            raise MlflowException("Permission denied", error_code=PERMISSION_DENIED)
        log_inputs_of_mlflow(client, run_id, datasets)

    monkeypatch.setattr(MlflowClient, "log_inputs", without_models)
    _, inputs = inputs_with(f"models:/{model.model_id}")
    assert len(inputs.dataset_inputs) == 1
    assert inputs.model_inputs == []
    assert f"MLflow does not show models:/{model.model_id} as an input of the run" in caplog.text


@pytest.mark.parametrize(
    "parent", ["models:/gone/1", "models:/m-00112233445566778899aabbccddeeff", "w.pth (sha256 12)"]
)
def test_what_the_server_does_not_know_is_no_input(store, parent):
    assert inputs_with(parent)[1].model_inputs == []
