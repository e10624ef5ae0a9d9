"""A worker of a study: it takes trials one after another, each a run of its own, until none is left."""

from __future__ import annotations

import copy
import logging
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import Trial, TrialState

from hpt_mlflow.augment.subset import AUGMENTATIONS, format_strengths
from hpt_mlflow.data.batches import ViewBatches
from hpt_mlflow.data.sources import open_dataset
from hpt_mlflow.errors import HptError, one_line
from hpt_mlflow.settings import DEFAULT_MODEL_NAME, TuneSettings
from hpt_mlflow.signals import signals_as_requests
from hpt_mlflow.stages.processes.children import be_child
from hpt_mlflow.stages.progress import ProgressDisplay
from hpt_mlflow.stages.search.setup import TrialSetup, set_up_trials
from hpt_mlflow.tracking import tags as tag
from hpt_mlflow.tracking.connection import connect
from hpt_mlflow.tracking.models.store import find_model
from hpt_mlflow.tracking.runs.search_runs import worker_name
from hpt_mlflow.tracking.runs.stage_run import EndedEarly, NotDeliveredError, StageRun, stage_run
from hpt_mlflow.training.loop import Trainer
from hpt_mlflow.tuning.pruning import make_halving, make_pruner
from hpt_mlflow.tuning.records import FAILED
from hpt_mlflow.tuning.search import SharedSearch
from hpt_mlflow.tuning.storage import open_storage, storage_errors
from hpt_mlflow.tuning.trials import RUN, STATES

BUDGET_STEPS, BUDGET_MINUTES, INTERRUPTED_REASON = "budget_steps is spent", "minutes are over", "interrupted"

log = logging.getLogger("hpt_mlflow")


@dataclass(frozen=True)
class Job:
    """What a worker is told.

    Attributes:
        settings: with the address of the parent as it was found.
        deadline: of all trials, in seconds since the epoch; None for none.
    """

    settings: TuneSettings
    study: str
    deadline: float | None

    @property
    def is_over(self) -> bool:
        """Whether its time has passed."""
        return self.deadline is not None and time.time() > self.deadline


def open_search(settings: TuneSettings, storage: BaseStorage, name: str, setup: TrialSetup) -> SharedSearch:
    """The study of some settings, as each worker opens it."""
    pruner = make_pruner(settings.pruner, setup.plan.steps, setup.rungs[0], settings.reduction)
    halving = make_halving(settings.pruner, setup.rungs, settings.reduction)
    return SharedSearch(storage, name, setup.space, pruner, settings.seed, settings.budget_steps, halving)


def run_trials(job: Job) -> None:
    """Take trials until none is left, or a budget is spent.

    Raises:
        HptError: the study is another one than the leader's, or its storage cannot be reached.
        KeyboardInterrupt: a signal asked to stop; the trial waits in the queue again.
    """
    settings = job.settings
    dataset = open_dataset(settings.data, settings.root)
    connect()
    setup = set_up_trials(settings, dataset, find_model(settings.parent, "parent", DEFAULT_MODEL_NAME))
    with storage_errors(settings.storage):
        study = open_search(settings, open_storage(settings.storage), job.study, setup)
        study.check_identity(setup.identity)
        while not job.is_over and study.has_steps_for(setup.rungs[0]):
            trial = study.claim(worker_name())
            if trial is None or not _run_trial(setup, study, trial, job):
                return


def _run_trial(setup: TrialSetup, study: SharedSearch, trial: Trial, job: Job) -> bool:
    """Adapt with the subset of a trial, as far as it is worth it; gives whether there may be more to do.

    Raises:
        HptError: no run can be started; the trial waits in the queue again.
        KeyboardInterrupt: a signal asked to stop; likewise.
    """
    try:
        if not study.reserve(trial, setup.rungs[0]):
            study.give_up(trial, BUDGET_STEPS, count=False)
            return False
        subset, strengths = setup.space.suggest(trial)
        setup = replace(setup, plan=replace(setup.plan, subset=subset, strengths=strengths))
        with stage_run(_title(trial, setup)) as run:
            trial.set_user_attr(RUN, run.run_id)
            _introduce(run, setup, trial, job)
            _see_through(run, setup, study, trial, job)
    except EndedEarly:
        pass
    except NotDeliveredError as error:
        log.warning("%s", error)
    except UpdateFinishedTrialError:
        log.warning("%s was taken for lost, and is tried again", _title(trial, setup))
    except (HptError, KeyboardInterrupt) as error:
        # Nothing happens here where it has been told already how the trial ended.
        reason = one_line(error) if isinstance(error, HptError) else INTERRUPTED_REASON
        given_up = study.give_up(trial, reason, count=False)
        if given_up or isinstance(error, KeyboardInterrupt):
            raise
        log.warning("%s failed: %s", _title(trial, setup), error)
    return True


def _see_through(run: StageRun, setup: TrialSetup, study: SharedSearch, trial: Trial, job: Job) -> None:
    """Train, and tell Optuna how it ended before the run ends: a running trial without a run is a lost one."""
    try:
        score, why = _train(run, setup, study, trial, job)
    except KeyboardInterrupt:
        study.give_up(trial, INTERRUPTED_REASON, count=False)
        run.tags({tag.TRIAL_STATE: "interrupted"})
        raise
    # Torch's own errors, such as too little memory, are of this trial as well.
    except (HptError, RuntimeError) as error:
        study.end(trial, TrialState.FAIL, reason=one_line(error))
        run.tags({tag.TRIAL_STATE: FAILED, tag.REASON: one_line(error)})
        raise HptError(one_line(error)) from error
    if score is None:
        study.give_up(trial, why, count=False)
        run.tags({tag.TRIAL_STATE: "interrupted", tag.REASON: why})
        raise EndedEarly
    wanted = TrialState.PRUNED if why else TrialState.COMPLETE
    state, why = study.end(trial, wanted, score, why, again=why in (BUDGET_STEPS, BUDGET_MINUTES))
    run.tags({tag.TRIAL_STATE: STATES[state], tag.REASON: why})
    if state == TrialState.FAIL:
        raise HptError(why)
    if state == TrialState.PRUNED:
        raise EndedEarly


def _title(trial: Trial, setup: TrialSetup) -> str:
    return f"trial {trial.number} {','.join(setup.plan.subset) or 'none'}"


def _introduce(run: StageRun, setup: TrialSetup, trial: Trial, job: Job) -> None:
    """Log what is known before the first step."""
    plan, subset = setup.plan, setup.plan.subset
    run.tags(
        {
            tag.STAGE: "trial",
            tag.STUDY: job.study,
            tag.TRIAL: trial.number,
            tag.TRIAL_STATE: "running",
            tag.CHAIN: " > ".join((*setup.start.chain, setup.dataset.name)),
            tag.PARENT_MODEL: setup.start.parent,
            tag.AUGMENT: ",".join(subset) or "none",
            tag.DATASET_DIGEST: setup.dataset.digest,
        }
    )
    changed = format_strengths(plan.strengths)
    # On and off as numbers, each under a name of its own: a parallel coordinates plot has an axis for each.
    run.params(
        {f"augment_{name}": int(name in subset) for name in AUGMENTATIONS}
        | {name: value for name, value in trial.params.items() if not isinstance(value, bool)}
        | plan.as_params()
        | {"objective": setup.objective, "strengths": changed or "default", "arch": setup.start.architecture.name}
    )


def _train(run: StageRun, setup: TrialSetup, study: SharedSearch, trial: Trial, job: Job) -> tuple[float | None, str]:
    """Train from rung to rung.

    Returns:
        The last score, and why the trial ended before its last rung, or nothing.
    """
    plan, start = setup.plan, setup.start
    trainer = Trainer(copy.deepcopy(start.backbone), start.feature_size, plan, setup.statistics, setup.device)
    batches = ViewBatches(
        setup.images,
        plan.batch_size,
        start.architecture.image_size,
        plan.subset,
        plan.strengths,
        plan.seed,
        views=trainer.method.views,
    )
    score: float | None = None
    with ProgressDisplay(_title(trial, setup), plan.steps) as display, signals_as_requests() as requests:
        # The loss is the mean over as many steps at every rung, but for a last one that is nearer to a report.
        for step, metrics in trainer.train(batches, setup.workers, setup.rungs[0]):
            display.advance(step, metrics)
            if metrics:
                run.metrics(metrics, step)
            if step in setup.rungs:
                score = setup.judge.score(trainer.backbone) if setup.judge else metrics["train/loss"]
                run.metrics({"tune/score": score}, step)
                trial.report(score, step)
                if pruned := _why_pruned(setup, study, trial, step):
                    return score, pruned
            if requests.stop:
                raise KeyboardInterrupt
            if job.is_over and step < plan.steps:
                return score, BUDGET_MINUTES
    return score, ""


def _why_pruned(setup: TrialSetup, study: SharedSearch, trial: Trial, step: int) -> str:
    """Why a trial does not go on to its next rung, or nothing; if it does, the steps up to there count as spent."""
    if step == setup.rungs[-1]:
        return ""
    if step == study.target(trial):
        return f"ended at step {step}, from where the best go on"
    if trial.should_prune():
        return f"not among the best at step {step}"
    return "" if study.reserve(trial, setup.rungs[setup.rungs.index(step) + 1]) else BUDGET_STEPS


def _work(job: Mapping[str, Any]) -> None:
    """Be a worker."""
    run_trials(Job(TuneSettings(**job["settings"]), job["study"], job["deadline"]))


if __name__ == "__main__":
    sys.exit(be_child(_work))
