"""MLflow's autologging of scikit-learn around stages."""

import mlflow
import pytest
from sklearn.linear_model import LogisticRegression

from hpt_mlflow.tracking.runs.stage_run import stage_run


@pytest.fixture
def autologging(store):
    mlflow.sklearn.autolog(log_models=False, log_datasets=False, silent=True)
    yield
    mlflow.sklearn.autolog(disable=True)


def fit() -> None:
    LogisticRegression().fit([[0.0], [1.0]], [0, 1])


def names():
    found = mlflow.search_runs(search_all_experiments=True, output_format="list")
    # A name of MLflow's own is another one each time.
    return sorted(run.data.tags.get("hpt.stage", run.data.tags.get("estimator_name", "?")) for run in found)


def test_fits_of_a_stage_are_not_logged_and_those_of_the_user_are(autologging):
    with stage_run("main") as outer:
        outer.tags({"hpt.stage": "main"})
        fit()
        with stage_run("evaluate cats") as inner:
            inner.tags({"hpt.stage": "evaluate"})
            fit()
        fit()
    assert names() == ["evaluate", "main"]
    assert mlflow.get_run(outer.run_id).data.params == mlflow.get_run(inner.run_id).data.params == {}
    fit()
    assert names() == ["LogisticRegression", "evaluate", "main"]


def test_an_error_leaves_autologging_on(autologging):
    with pytest.raises(ZeroDivisionError), stage_run("evaluate cats"):
        raise ZeroDivisionError
    fit()
    assert names() == ["?", "LogisticRegression"]
