"""Jobs of an experiment as real processes with real runs."""

from __future__ import annotations

from dataclasses import replace

import mlflow
import pytest
from colours import TINY

from hpt_mlflow.data.sources import open_dataset
from hpt_mlflow.errors import HptError
from hpt_mlflow.experiments.plan import job
from hpt_mlflow.stages.studies.jobs import Workplace, done_before, run_jobs
from hpt_mlflow.tracking.runs.reuse import metric_by_step
from hpt_mlflow.tracking.runs.stage_run import stage_run

SHORT = TINY | {"steps": 2, "milestones": "50%,100%", "compile": "off", "model_name": "jobs"}


def adaptation(images, parent, **more):
    shared = {name: value for name, value in SHORT.items() if name not in ("arch", "image_size")}
    return job("adapt", data=str(images), parent=parent, **shared | {"seed": 0, "judge": "none"} | more)


def evaluation(images, training, whole_run=False):
    own = {"untrained": False, "classifier_name": "none", "seed": 0}
    return job("evaluate", training, whole_run, data=str(images), **own)


def run_all(jobs, images, reuse=True, at_once=1):
    """Run jobs inside a run of their own; gives that run, what came of them, and in which order."""
    order = []
    with stage_run("around") as run:
        place = Workplace({str(images): open_dataset(str(images))}, run.run_id, at_once, reuse)
        done = run_jobs(jobs, place, lambda job, result, count: order.append((job, count)))
    return run.run_id, done, order


@pytest.fixture
def chain(past):
    training = adaptation(past.images, past.model)
    return [training, evaluation(past.images, training, whole_run=True)]


@pytest.mark.slow
def test_jobs_run_in_their_order_nested_and_are_found_again_from_another_run(past, chain):
    parent, done, order = run_all(chain, past.images)
    assert order == [(chain[0], 1), (chain[1], 2)]
    assert not any(result.reused for result in done.values())
    for result in done.values():
        run = mlflow.get_run(result.run_id)
        assert run.info.status == "FINISHED"
        assert run.data.tags["mlflow.parentRunId"] == parent
    training, judged = (done[each] for each in chain)
    assert mlflow.get_run(training.run_id).data.tags["hpt.parent_model"] == past.model
    # Of the whole run, each milestone has a figure.
    assert sorted(metric_by_step(judged.run_id, "test/accuracy")) == [1, 2]

    place = Workplace({str(past.images): open_dataset(str(past.images))}, "", 1, reuse=True)
    found = done_before(chain, place)
    assert {each: (result.run_id, result.reused) for each, result in found.items()} == {
        each: (result.run_id, True) for each, result in done.items()
    }
    # What is not there yet keeps what is behind it from being looked for.
    longer = adaptation(past.images, past.model, steps=3)
    assert list(done_before([longer, evaluation(past.images, longer), *chain], place)) == chain
    assert done_before(chain, replace(place, reuse=False)) == {}

    _, again, order = run_all(chain, past.images)
    assert {each: (result.run_id, result.reused) for each, result in again.items()} == {
        each: (result.run_id, True) for each, result in done.items()
    }
    assert [count for _, count in order] == [1, 2]

    # A model that is gone has to be made again, and so has what was found of it.
    client = mlflow.MlflowClient()
    client.delete_model_version("jobs", training.model.rpartition("/")[2])
    _, anew, _ = run_all(chain, past.images)
    assert not any(result.reused for result in anew.values())


@pytest.mark.soak
def test_jobs_run_side_by_side(past):
    """Two trainings at once, and what is judged of each, whichever is done first."""
    trainings = [adaptation(past.images, past.model, seed=seed) for seed in (0, 1)]
    jobs = [*trainings, *(evaluation(past.images, training) for training in trainings)]
    parent, done, order = run_all(jobs, past.images, at_once=2)
    assert [count for _, count in order] == [1, 2, 3, 4]
    runs = {each: mlflow.get_run(result.run_id) for each, result in done.items()}
    assert {run.data.tags["mlflow.parentRunId"] for run in runs.values()} == {parent}
    first, second = (runs[training].info for training in trainings)
    assert max(first.start_time, second.start_time) < min(first.end_time, second.end_time)
    for training, judged in zip(trainings, jobs[2:], strict=True):
        assert runs[judged].data.tags["hpt.parent_model"] == done[training].model


def test_what_a_job_cannot_do_is_said_in_one_line_and_leaves_no_run_running(past):
    training = adaptation(past.images, past.model, batch_size=500)
    with pytest.raises(HptError, match=r"^adapt images < models:/hpt/1, 2 steps, seed 0: batch_size: 500 is more than"):
        run_all([training, evaluation(past.images, training)], past.images)
    assert {run.info.status for run in mlflow.search_runs(["0"], output_format="list")} <= {"FINISHED", "FAILED"}


@pytest.mark.soak
def test_what_is_not_to_be_reused_is_made_again(past, chain):
    training = [chain[0]]
    (first,) = run_all(training, past.images)[1].values()
    (second,) = run_all(training, past.images, reuse=False)[1].values()
    assert first.run_id != second.run_id
    assert not second.reused
