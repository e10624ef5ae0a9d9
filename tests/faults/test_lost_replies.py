"""A server that does what it is told, and whose replies are lost: MLflow's client would tell it again."""

import json

import mlflow
import pytest
from breaking_proxy import CUT, ERROR, EXPIRED_LOGIN, NO_REPLY, breaking_proxy
from mlflow.models import Model
from mlflow.tracking import MlflowClient

from hpt_mlflow.errors import HptError
from hpt_mlflow.tracking.connection import prepare
from hpt_mlflow.tracking.delivery.entries import deliver
from hpt_mlflow.tracking.delivery.run_client import RunClient
from hpt_mlflow.tracking.delivery.spool import Entry
from hpt_mlflow.tracking.runs.stage_run import stage_run


@pytest.mark.slow
def test_a_model_and_its_version_are_there_once(server, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    start_server, workplace = server
    start_server()
    run_id = workplace.client.create_run("0").info.run_id
    Model().save(str(tmp_path / "MLmodel"))
    model = Entry(0, "model", {"name": "step-1", "step": 1, "params": {}, "tags": {}}, tmp_path)
    version = Entry(1, "version", {"model": "step-1", "model_name": "hpt", "tags": {}})
    with breaking_proxy(int(workplace.tracking_uri.rpartition(":")[2]), EXPIRED_LOGIN, 0) as breaking:
        lost = set()

        def lose_first_reply(method, path):
            if method == "POST" and path.endswith(("/logged-models", "/model-versions/create")) and path not in lost:
                lost.add(path)
                return NO_REPLY
            return ""

        monkeypatch.setattr(breaking, "draw", lose_first_reply)
        for uri in (mlflow.set_tracking_uri, mlflow.set_registry_uri):
            uri(breaking.uri)
        prepare()
        for entry in (model, version):
            with pytest.raises(Exception, match="exception"):
                deliver(RunClient(run_id, "0"), [entry])
            deliver(RunClient(run_id, "0"), [entry])
        mlflow.set_tracking_uri(None)
    assert len(lost) == 2
    (logged,) = workplace.client.search_logged_models(["0"])
    assert json.loads(logged.tags["mlflow.modelVersions"]) == [{"name": "hpt", "version": 1}]
    assert [each.version for each in MlflowClient(registry_uri=workplace.tracking_uri).search_model_versions()] == ["1"]


@pytest.mark.slow
def test_a_run_is_there_once_whatever_becomes_of_the_call_that_creates_it(server, monkeypatch):
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    start_server, workplace = server
    start_server()
    monkeypatch.setenv("HPT_SPOOL", str(workplace.spool))
    faults = []
    with breaking_proxy(int(workplace.tracking_uri.rpartition(":")[2]), EXPIRED_LOGIN, 0) as breaking:

        def break_creation(_, path):
            return faults.pop() if faults and path.endswith("/runs/create") else ""

        monkeypatch.setattr(breaking, "draw", break_creation)
        for uri in (mlflow.set_tracking_uri, mlflow.set_registry_uri):
            uri(breaking.uri)
        prepare()
        ids = []
        for happens in ([NO_REPLY], [CUT], [ERROR], [NO_REPLY, CUT, ERROR]):
            faults[:] = happens
            with stage_run("adapt cats < dogs") as run:
                ids.append(run.run_id)
            assert not faults
            assert len(workplace.client.search_runs(["0"])) == len(ids), happens
        faults[:] = [ERROR] * 3
        with pytest.raises(HptError, match="cannot start a run: the server answers with the error 500"), stage_run(""):
            pass
        mlflow.set_tracking_uri(None)
    runs = workplace.client.search_runs(["0"])
    assert sorted(run.info.run_id for run in runs) == sorted(ids)
    assert {run.info.status for run in runs} == {"FINISHED"}
