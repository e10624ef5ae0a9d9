"""What the runs of a study have measured."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hpt_mlflow.experiments.base import Study
from hpt_mlflow.experiments.plan import Job, StudyPlan
from hpt_mlflow.experiments.results import Results
from hpt_mlflow.stages.studies.jobs import Done
from hpt_mlflow.tracking import tags as tag
from hpt_mlflow.tracking.runs.reuse import get_run, metric_by_step


def results_of(this: Study, plan: StudyPlan, done: Mapping[Job, Done]) -> Results:
    """The test scores of all points, as MLflow has them.

    Args:
        done: the run of each job.
    """
    metric = ""
    scores: dict[tuple[str, str, int], dict[int, float]] = {}
    untrained: dict[int, float] = {}
    took = {job: _training_seconds(result.run_id) for job, result in done.items() if job.stage != "evaluate"}
    longest: dict[tuple[str, str, int], float] = {}
    for point in plan.points:
        run = get_run(done[point.evaluation].run_id)
        metric = run.data.tags[tag.METRIC].removeprefix("test/")
        # Trainings of different lengths are one curve.
        place = point.method, point.condition, point.seed
        curve = scores.setdefault(place, {})
        curve |= metric_by_step(run.info.run_id, f"test/{metric}")
        if f"random/{metric}" in run.data.metrics:
            untrained.setdefault(point.seed, run.data.metrics[f"random/{metric}"])
        if training := point.evaluation.start:
            longest[place] = max(longest.get(place, 0.0), took[training])
    seconds = {
        name: float(np.mean([value for (method, *_), value in longest.items() if method == name]))
        for name in {method for method, _, _ in longest}
    }
    return Results(this.name, metric, scores, untrained, seconds)


def _training_seconds(run_id: str) -> float:
    """How long the steps of a training took, without starting, pauses and what is done at milestones."""
    batch_size, last, seconds = int(get_run(run_id).data.params[tag.setting_param("batch_size")]), 0, 0.0
    for step, rate in sorted(metric_by_step(run_id, "train/images_per_second").items()):
        seconds += (step - last) * batch_size / rate
        last = step
    return seconds
