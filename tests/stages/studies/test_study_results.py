"""What a study reads from the runs of its jobs."""

from __future__ import annotations

from mlflow.tracking import MlflowClient

from hpt_mlflow.experiments import load_study
from hpt_mlflow.settings import StudySettings
from hpt_mlflow.stages.studies.jobs import Done
from hpt_mlflow.stages.studies.results import results_of
from hpt_mlflow.tracking import tags as tag

LENGTHS = (2, 5, 10)


def run_of(job, client):
    """A run as the stage of a job leaves it: a training of 8 images a second, an evaluation of a hundredth per step."""
    run_id = client.create_run("0").info.run_id
    if job.stage != "evaluate":
        client.log_param(run_id, tag.setting_param("batch_size"), 16)
        client.log_metric(run_id, "train/images_per_second", 8.0, step=job.steps)
        return Done(run_id, "", reused=False)
    client.set_tag(run_id, tag.METRIC, "test/accuracy")
    client.log_metric(run_id, "test/accuracy", job.start.steps / 100, step=job.start.steps)
    if job.settings["untrained"]:
        client.log_metric(run_id, "random/accuracy", 0.005)
    return Done(run_id, "", reused=False)


def test_trainings_of_different_lengths_are_one_curve(store):
    settings = StudySettings(own_lengths=True, steps=10, base_steps=30, milestones="20%,50%", seeds=2)
    this = load_study("separability")
    plan, client = this.plan(settings, images=100), MlflowClient()
    results = results_of(this, plan, {job: run_of(job, client) for job in plan.jobs})
    curve = {steps: steps / 100 for steps in LENGTHS}
    for method in ("Target", "HPT", "HPT-BN"):
        assert results.by_seed(method) == {0: curve, 1: curve}
        # 10 steps of 16 images.
        assert results.seconds[method] == 20.0
    assert results.by_seed("Base as it is") == {0: {30: 0.3}, 1: {30: 0.3}}
    assert results.untrained == {0: 0.005, 1: 0.005}
    assert results.metric == "accuracy"
    assert len(this.figure(results).axes[0].lines) >= 3
