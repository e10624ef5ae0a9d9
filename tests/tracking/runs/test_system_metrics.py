import sys

import mlflow
import pytest

from hpt_mlflow.errors import HptError
from hpt_mlflow.tracking.runs.stage_run import stage_run
from hpt_mlflow.tracking.runs.start import _history

pytest.importorskip("psutil")


@pytest.fixture
def wanted(store, monkeypatch):
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")


def logged(run_id):
    return {name for name in mlflow.get_run(run_id).data.metrics if name.startswith("system/")}


def test_a_run_logs_mlflows_system_metrics_if_mlflow_is_told_to(wanted):
    with stage_run("adapt dogs") as run:
        run.metrics({"loss": 1.0}, 0)
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= logged(run.run_id)
    (point, *_) = mlflow.MlflowClient().get_metric_history(run.run_id, "system/cpu_utilization_percentage")
    assert 0 <= point.step < 60


def test_a_resumed_run_does_not_take_them_for_metrics_of_its_training(wanted):
    with stage_run("adapt dogs") as run:
        run.metrics({"loss": 1.0}, 3)
    client = mlflow.MlflowClient()
    assert _history(client, client.get_run(run.run_id)) == [(3, {"loss": 1.0})]


def test_otherwise_it_logs_none(store):
    with stage_run("adapt dogs") as run:
        run.metrics({"loss": 1.0}, 0)
    assert logged(run.run_id) == set()


def test_without_psutil_no_run_is_started(wanted, monkeypatch):
    monkeypatch.setitem(sys.modules, "psutil", None)
    with (
        pytest.raises(HptError, match=r'LOGGING: system metrics need .*pip install "hpt_mlflow\[system\]"'),
        stage_run(""),
    ):
        pass
    assert mlflow.search_runs(output_format="list") == []
