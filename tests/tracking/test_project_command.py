import mlflow
import pytest
from mlflow.tracking import MlflowClient

from hpt_mlflow.tracking.project import project_command


@pytest.mark.parametrize(
    ("tags", "command"),
    [
        ({}, "mlflow run /repo --env-manager local"),
        ({"mlflow.project.env": "conda"}, "mlflow run /repo"),
        ({"mlflow.project.env": "uv"}, "mlflow run /repo --env-manager uv"),
        ({"mlflow.source.name": "file:///my%20repo"}, "mlflow run '/my repo' --env-manager local"),
        ({"mlflow.source.name": "https://host/repo.git"}, "mlflow run https://host/repo.git --env-manager local"),
        ({"mlflow.source.name": "/my repo"}, "mlflow run '/my repo' --env-manager local"),
    ],
)
def test_a_run_is_started_again_with_its_project_and_environment(store, tags, command):
    run = MlflowClient().create_run("0", tags={"mlflow.source.name": "/repo"} | tags)
    assert project_command(run.info.run_id) == command


def test_of_a_run_that_nobody_knows_there_is_no_command(store):
    assert mlflow.get_tracking_uri() == store
    assert project_command("0" * 32) == ""
