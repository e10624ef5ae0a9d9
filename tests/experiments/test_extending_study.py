"""A study that is added from outside the package: one class, and one line that registers it."""

from __future__ import annotations

import importlib

import mlflow
import pytest

import hpt_mlflow
from hpt_mlflow.errors import HptError
from hpt_mlflow.experiments import STUDIES, load_study
from hpt_mlflow.settings import StudySettings

SETTINGS = {
    **{"study": "learning-rate", "base": "builtin:digits", "target": "builtin:digits", "images": "64", "seeds": 1},
    **{"base_steps": 2, "steps": 2, "at_once": 2, "workers": 0, "batch_size": 8, "precision": "float32"},
    **{"arch": "shufflenet_v2_x0_5", "image_size": 32, "compile": "off"},
}


@pytest.fixture(autouse=True)
def rates(examples):
    """The learning rates of the study of docs/extending.md; it is registered for each test alone."""
    importlib.import_module("my_package.study").register()
    yield importlib.import_module("my_package.learning_rate").RATES
    del STUDIES["learning-rate"]


def test_settings_accept_the_name_of_a_registered_study():
    assert StudySettings(study="learning-rate").study == "learning-rate"
    with pytest.raises(HptError, match="'learning-rat' is not one of separability, .*, learning-rate"):
        StudySettings(study="learning-rat")


def test_its_plan_has_its_evaluations_for_each_seed(rates):
    plan = load_study("learning-rate").plan(StudySettings(**SETTINGS | {"seeds": 2}), images=64)
    assert [(point.condition, point.seed) for point in plan.points] == [
        (rate, seed) for seed in (0, 1) for rate in rates
    ]
    assert [point.evaluation.start.settings["learning_rate"] for point in plan.points] == [0.003, 0.03] * 2
    # The base once per seed, and a training and an evaluation for each learning rate.
    assert len(plan.jobs) == 2 * (1 + 2 + 2)


@pytest.mark.slow
def test_it_runs_and_answers(store, rates, capsys):
    result = hpt_mlflow.study(**SETTINGS)
    run = mlflow.get_run(result.run_id)
    low, high = (result.metrics[f"HPT/{rate}/accuracy"] for rate in rates)
    claim = f"HPT better with a learning rate of 0.03 than of 0.003: {round(100 * (high - low), 1) + 0.0:+.1f}"
    assert f"- {claim} (one seed) points, not shown." in run.data.tags["mlflow.note.content"]
    page = mlflow.artifacts.load_text(f"runs:/{result.run_id}/study.html")
    assert "Which learning rate HPT needs on the target: digits &gt; digits" in page
    # The model of the first learning rate is the result.
    model = mlflow.MlflowClient().get_model_version("hpt-study", result.model_uri.rpartition("/")[2])
    assert mlflow.get_run(model.run_id).data.params["settings/learning_rate"] == rates[0]
    assert hpt_mlflow.study(**SETTINGS, dry_run=True) is None
    assert "2 evaluations. 5 of these stages are there already." in capsys.readouterr().out
