"""A search worker: it takes trials one after another, each with an MLflow run of its own, until none is left."""

from __future__ import annotations

import copy
import logging
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import Trial, TrialState

from hpt_mlflow.augment.subset import AUGMENTATIONS, format_strengths
from hpt_mlflow.data.batches import ViewBatches
from hpt_mlflow.data.gpu_images import images_on_gpu
from hpt_mlflow.data.sources import open_dataset
from hpt_mlflow.errors import HptError, one_line
from hpt_mlflow.gpu_errors import is_gpu_lost
from hpt_mlflow.group import side_by_side
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
from hpt_mlflow.tuning.trials import RUN, STATES, STEPS

# Why a trial ended early, as stored.
BUDGET_MINUTES, INTERRUPTED = "minutes are over", "interrupted"

log = logging.getLogger("hpt_mlflow")


def open_search(settings: TuneSettings, storage: BaseStorage, setup: TrialSetup) -> SharedSearch:
    """The search named by `settings.study`, as each process opens it."""
    assert settings.study is not None
    pruner = make_pruner(settings.pruner, setup.plan.steps, setup.rungs[0], settings.reduction)
    halving = make_halving(settings.pruner, setup.rungs, settings.reduction)
    return SharedSearch(storage, settings.study, setup.space, pruner, settings.seed, halving)


def is_over(deadline: float | None) -> bool:
    """Whether a deadline, in seconds since the epoch, has passed."""
    return deadline is not None and time.time() > deadline


def run_trials(settings: TuneSettings, deadline: float | None) -> None:
    """Take trials until none is left, or the time is over.

    Args:
        settings: with study, parent and precision as the leader resolved them.
        deadline: of all trials, in seconds since the epoch; None for none.

    Raises:
        HptError: the search has other settings than the leader's, or its storage cannot be reached.
        KeyboardInterrupt: a signal asked to stop; the trial waits in the queue again.
    """
    dataset = open_dataset(settings.data, settings.root)
    connect()
    setup = set_up_trials(settings, dataset, find_model(settings.parent, "parent", DEFAULT_MODEL_NAME))
    setup = replace(setup, gpu_images=images_on_gpu(setup.images, setup.device, side_by_side()))
    with storage_errors(settings.storage):
        search = open_search(settings, open_storage(settings.storage), setup)
        search.check_identity(setup.identity)
        while not is_over(deadline) and (trial := search.claim(worker_name())):
            _run_trial(setup, search, trial, deadline)


def _run_trial(setup: TrialSetup, search: SharedSearch, trial: Trial, deadline: float | None) -> None:
    """Adapt with the subset of a trial, for as long as it is promising.

    Raises:
        HptError: no run can be started; the trial waits in the queue again.
        KeyboardInterrupt: a signal asked to stop; likewise.
    """
    try:
        trial.set_user_attr(STEPS, setup.rungs[0])
        subset, strengths = setup.space.suggest(trial)
        setup = replace(setup, plan=replace(setup.plan, subset=subset, strengths=strengths))
        with stage_run(_title(trial, setup)) as run:
            trial.set_user_attr(RUN, run.run_id)
            _log_start(run, setup, search, trial)
            _train_and_end(run, setup, search, trial, deadline)
    except EndedEarly:
        pass
    except NotDeliveredError as error:
        log.warning("%s", error)
    except UpdateFinishedTrialError:
        log.warning("%s was given up by another process, and is tried again", _title(trial, setup))
    except (HptError, KeyboardInterrupt) as error:
        # Has no effect if it is already stored how the trial ended.
        reason = one_line(error) if isinstance(error, HptError) else INTERRUPTED
        given_up = search.give_up(trial, reason, count=False)
        if given_up or isinstance(error, KeyboardInterrupt):
            raise
        log.warning("%s failed: %s", _title(trial, setup), error)


def _train_and_end(
    run: StageRun, setup: TrialSetup, search: SharedSearch, trial: Trial, deadline: float | None
) -> None:
    """Train, and store how it ended before the run ends: a running trial without a run counts as lost."""
    try:
        score, reason = _train(run, setup, search, trial, deadline)
    except KeyboardInterrupt:
        search.give_up(trial, INTERRUPTED, count=False)
        run.tags({tag.TRIAL_STATE: "interrupted"})
        raise
    # Torch's own errors, such as too little memory, concern this trial as well.
    except (HptError, RuntimeError) as error:
        reason, is_lost = one_line(error), is_gpu_lost(error)
        if is_lost:
            # This process can do nothing more, but another one may.
            search.give_up(trial, reason)
        else:
            search.end(trial, TrialState.FAIL, reason=reason)
        run.tags({tag.TRIAL_STATE: FAILED, tag.REASON: reason})
        if is_lost:
            raise
        raise HptError(reason) from error
    if score is None:
        search.give_up(trial, reason, count=False)
        run.tags({tag.TRIAL_STATE: "interrupted", tag.REASON: reason})
        raise EndedEarly
    state = TrialState.PRUNED if reason else TrialState.COMPLETE
    state, reason = search.end(trial, state, score, reason, again=reason == BUDGET_MINUTES)
    run.tags({tag.TRIAL_STATE: STATES[state], tag.REASON: reason})
    if state == TrialState.FAIL:
        raise HptError(reason)
    if state == TrialState.PRUNED:
        raise EndedEarly


def _title(trial: Trial, setup: TrialSetup) -> str:
    return f"trial {trial.number} {','.join(setup.plan.subset) or 'none'}"


def _log_start(run: StageRun, setup: TrialSetup, search: SharedSearch, trial: Trial) -> None:
    """Log what is known before the first step."""
    plan = setup.plan
    run.tags(
        {
            tag.STAGE: "trial",
            tag.STUDY: search.name,
            tag.TRIAL: trial.number,
            tag.TRIAL_STATE: "running",
            tag.METHOD: plan.method,
            tag.CHAIN: " > ".join(setup.chain),
            tag.PARENT_MODEL: setup.start.parent,
            tag.AUGMENT: ",".join(plan.subset) or "none",
            tag.DATASET_DIGEST: setup.dataset.digest,
        }
    )
    # Augmentations as separate numbers: a parallel coordinates plot has an axis for each.
    run.params(
        {f"augment_{name}": int(name in plan.subset) for name in AUGMENTATIONS}
        | {name: value for name, value in trial.params.items() if not isinstance(value, bool)}
        | plan.as_params()
        | {"objective": setup.objective, "arch": setup.start.architecture.name}
        | {"strengths": format_strengths(plan.strengths) or "default"}
    )


def _train(
    run: StageRun, setup: TrialSetup, search: SharedSearch, trial: Trial, deadline: float | None
) -> tuple[float | None, str]:
    """Train from rung to rung.

    Returns:
        The last score, and why the trial ended before the last rung; an empty text if it did not.
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
        local=setup.local,
        gpu_images=setup.gpu_images,
    )
    score: float | None = None
    with ProgressDisplay(_title(trial, setup), plan.steps) as display, signals_as_requests() as requests:
        # The loss is the mean over the steps since the last report: equally many at each rung except perhaps the last.
        for step, metrics in trainer.train(batches, setup.workers, setup.rungs[0]):
            display.advance(step, metrics)
            if metrics:
                run.metrics(metrics, step)
            if step in setup.rungs:
                score = setup.judge.score(trainer.backbone) if setup.judge else metrics["train/loss"]
                run.metrics({"tune/score": score}, step)
                trial.report(score, step)
                if reason := _why_ended(setup, search, trial, step):
                    return score, reason
                if step < plan.steps:
                    trial.set_user_attr(STEPS, setup.rungs[setup.rungs.index(step) + 1])
            if requests.stop:
                raise KeyboardInterrupt
            if is_over(deadline) and step < plan.steps:
                return score, BUDGET_MINUTES
    return score, ""


def _why_ended(setup: TrialSetup, search: SharedSearch, trial: Trial, step: int) -> str:
    """Why a trial ends at a rung before the last; an empty text if it continues."""
    if step == setup.rungs[-1]:
        return ""
    if step == search.target(trial):
        return f"ended at step {step}, from where the best continue"
    if trial.should_prune():
        return f"not among the best at step {step}"
    return ""


def _work(job: Mapping[str, Any]) -> None:
    try:
        run_trials(TuneSettings(**job["settings"]), job["deadline"])
    except RuntimeError as error:
        if not is_gpu_lost(error):
            raise
        log.error("a search worker has lost its GPU (%s)", one_line(error))
        sys.exit(1)


if __name__ == "__main__":
    sys.exit(be_child(_work))
