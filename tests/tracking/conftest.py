import shutil

import mlflow
import pytest
from recorded import three_stages


@pytest.fixture(scope="module")
def three_models(empty_database, tmp_path_factory):
    """A store with three versions of hpt, each with an evaluation and a classifier: 0.60, 0.70 and 0.65."""
    stages = [("pretrain", dataset, None) for dataset in ("cats", "dogs", "birds")]
    return three_stages(empty_database, tmp_path_factory.mktemp("three"), stages, (0.6, 0.7, 0.65))


@pytest.fixture
def models(three_models, store, tmp_path):
    """The addresses of the three versions, in a copy of their store."""
    file, made = three_models
    shutil.copy(file, tmp_path / "mlflow.db")
    return made


@pytest.fixture
def lose_server(unused_port, monkeypatch):
    """A function: from then on, nobody answers for the tracking server."""

    def lose():
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{unused_port}")
        mlflow.set_tracking_uri(None)

    return lose
