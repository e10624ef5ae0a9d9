import json

import mlflow

from hpt_mlflow.data.sources import open_dataset
from hpt_mlflow.data.statistics import ChannelStatistics
from hpt_mlflow.tracking.runs.dataset_input import log_dataset


def test_a_run_shows_digest_sizes_and_statistics_of_its_dataset(store):
    dataset = open_dataset("builtin:digits")
    with mlflow.start_run() as run:
        log_dataset(run.info.run_id, dataset, dataset.split(0), ChannelStatistics((0.3,) * 3, (0.4,) * 3), "training")
    (logged,) = mlflow.get_run(run.info.run_id).inputs.dataset_inputs
    assert (logged.dataset.name, logged.dataset.digest) == ("digits", dataset.digest)
    assert json.loads(logged.dataset.source) == {"uri": "builtin:digits"}
    profile = json.loads(logged.dataset.profile)
    assert profile["images"] == 1797
    assert profile["train"] + profile["validation"] + profile["test"] == 1797
    assert profile["channel_mean"] == [0.3] * 3
