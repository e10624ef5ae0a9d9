"""Tune: find the augmentations that suit the images.

Short adaptations of one parent compete, one trial per subset of the augmentations. The first process leads the search:
it queues the trials, lets search workers take them until none is left, and shows the progress in its MLflow run. Every
other process with the same study and storage joins, and takes over if the leader is gone. At the end the leader adapts
the parent in full with the best subset and with the paper's, compares both on test, and registers the best.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Any

from optuna.trial import TrialState

from hpt_mlflow.data.sources import open_dataset
from hpt_mlflow.errors import HptError, without_secrets
from hpt_mlflow.evaluation.objectives import maximises
from hpt_mlflow.group import joins_others
from hpt_mlflow.options import marked
from hpt_mlflow.settings import TuneSettings
from hpt_mlflow.stages.identify import identify
from hpt_mlflow.stages.objects import refuse_objects
from hpt_mlflow.stages.result import StageResult, result_of
from hpt_mlflow.stages.search.report import SearchReport
from hpt_mlflow.stages.search.setup import TrialSetup, search_name, set_up_trials
from hpt_mlflow.stages.search.trials import open_search
from hpt_mlflow.stages.search.winner import adapt_winner, check_evaluation
from hpt_mlflow.stages.search.workers import run_search_workers
from hpt_mlflow.stages.signature import takes
from hpt_mlflow.tracking import tags as tag
from hpt_mlflow.tracking.connection import connect
from hpt_mlflow.tracking.identity import Identity
from hpt_mlflow.tracking.models.store import FoundModel, check_may_register, check_names, find_model
from hpt_mlflow.tracking.runs.inputs import log_inputs
from hpt_mlflow.tracking.runs.resume import EarlierRun
from hpt_mlflow.tracking.runs.search_runs import (
    is_abandoned,
    is_worked_on,
    joined_run,
    led_run,
    was_made_in,
    worker_name,
)
from hpt_mlflow.tracking.runs.stage_run import StageRun, stage_run
from hpt_mlflow.tuning.records import FAILED, TrialRecord, best_trial
from hpt_mlflow.tuning.search import IDENTITY, LEADER, LEADER_RUN, PRECISION, SharedSearch, attributes_of
from hpt_mlflow.tuning.storage import open_storage, storage_errors

# How long a search may lack a run after a process on another machine has created it.
NEW_SEARCH_SECONDS = 60.0


@takes(TuneSettings)
def tune(settings: TuneSettings) -> StageResult:
    """Search the augmentations with which a parent adapts best; adapt with them in full, evaluate and register.

    The first process with a study leads the search, with a run of its own; every other one with the same study and
    storage joins until no trial is left. The same command resumes an interrupted search.

    Raises:
        HptError: something is wrong that the user can mend; before any long work if possible.
    """
    if joins_others():
        raise HptError(
            "tune starts processes itself", "use --workers, or the same command on each machine, without torchrun"
        )
    refuse_objects(settings)
    dataset = open_dataset(settings.data, settings.root)
    storage = open_storage(settings.storage)
    connect()
    check_names(settings.model_name, settings.alias)
    if settings.adapt_winner:
        check_may_register(settings.model_name, settings.alias)
    settings = replace(settings, study=search_name(settings, dataset))
    with storage_errors(settings.storage):
        attributes = attributes_of(storage, settings.study or "")
        parent = _find_parent(settings, attributes)
        # All trials of a search use the same arithmetic, wherever they run.
        settings = replace(settings, parent=parent.uri, precision=attributes.get(PRECISION, settings.precision))
        setup = set_up_trials(settings, dataset, parent)
        settings = replace(settings, precision=setup.plan.precision)
        if settings.adapt_winner and dataset.labels is not None:
            check_evaluation(settings, dataset, parent)
        search = open_search(settings, storage, setup)
        is_new = search.create(setup.identity, maximises(setup.objective))
        if run_id := "" if is_new else _await_run(search):
            return _join_or_take_over(settings, setup, search, run_id)
        search.set_attribute(PRECISION, settings.precision)
        search.set_attribute(LEADER, worker_name())
        return _lead(settings, setup, search, None)


def _find_parent(settings: TuneSettings, attributes: dict[str, Any]) -> FoundModel:
    """The parent; the one of the existing search if `latest` has become the version that this search registered."""
    parent = find_model(settings.parent, "parent", settings.model_name)
    first = json.loads(attributes.get(IDENTITY, "{}")).get("parent", parent.uri)
    if parent.uri != first and LEADER_RUN in attributes and was_made_in(parent.uri, attributes[LEADER_RUN]):
        return find_model(first, "parent", settings.model_name)
    return parent


def _await_run(search: SharedSearch) -> str:
    """The run of a search that another process created; empty if that process was gone before it had one."""
    deadline = time.monotonic() + NEW_SEARCH_SECONDS
    while True:
        attributes = attributes_of(search.storage, search.name)
        if run_id := attributes.get(LEADER_RUN):
            return str(run_id)
        if time.monotonic() > deadline or not is_worked_on("", attributes.get(LEADER, ""), age_seconds=0):
            return ""
        time.sleep(1)


def _join_or_take_over(settings: TuneSettings, setup: TrialSetup, search: SharedSearch, run_id: str) -> StageResult:
    """Work on a search that another process leads, to its end; lead it if no process does any more."""
    while True:
        with led_run(run_id, search.name) as earlier:
            if earlier:
                search.set_attribute(LEADER, worker_name())
                return _lead(settings, setup, search, earlier)
        with joined_run(run_id):
            print(f"study {search.name}: another process leads it; its run {run_id} shows the result")
            run_search_workers(settings, search, run_id)
        if not is_abandoned(run_id):
            return StageResult(run_id, settings.parent, setup.chain, {})


def _lead(settings: TuneSettings, setup: TrialSetup, search: SharedSearch, earlier: EarlierRun | None) -> StageResult:
    """Queue the trials, run them, and adapt with the best.

    Args:
        earlier: the run to resume.
    """
    queue = setup.space.queue(settings.trials, settings.seed)
    search.fill(queue)
    if earlier and _is_done(settings, search, earlier):
        return result_of(earlier)
    title = f"tune {setup.dataset.name} < {setup.start.chain[-1]}"
    with stage_run(title, _identity(settings, setup), earlier) as run:
        search.set_attribute(LEADER_RUN, run.run_id)
        _log_start(run, settings, setup)
        report = SearchReport(run, settings, setup, search, len(queue))
        run_search_workers(settings, search, run.run_id, report.update)
        trials = report.update()
        report.draw(trials)
        best = best_trial(trials, report.maximise)
        if best is None:
            raise _no_score(trials)
        metrics = {"tune/best_score": best.score, "tune/steps": float(search.spent_steps())}
        model = settings.parent
        if settings.adapt_winner:
            winner = adapt_winner(settings, setup, best)
            report.describe(trials, winner)
            run.metrics(winner.metrics, len(trials))
            model, metrics = winner.registered, metrics | winner.metrics
        run.tags({tag.MODEL: model, tag.ADAPTED: str(settings.adapt_winner).lower()})
        return StageResult(run.run_id, model, setup.chain, metrics)


def _is_done(settings: TuneSettings, search: SharedSearch, earlier: EarlierRun) -> bool:
    """Whether the search was finished with as many trials as it has now."""
    tags = earlier.run.data.tags
    has_winner = not settings.adapt_winner or tags.get(tag.ADAPTED) == "true"
    has_trials_left = search.promote() or search.trials(TrialState.WAITING)
    return earlier.run.info.status == "FINISHED" and tag.MODEL in tags and has_winner and not has_trials_left


def _identity(settings: TuneSettings, setup: TrialSetup) -> Identity:
    # With the study's name, as the default one was made from the parent's address before it was resolved.
    shown = replace(settings, storage=without_secrets(settings.storage))
    command = identify("tune", shown, [setup.dataset], settings.parent).command
    return Identity({"stage": "tune", "study": settings.study, **setup.identity}, command)


def _log_start(run: StageRun, settings: TuneSettings, setup: TrialSetup) -> None:
    """Log what is known before the first trial."""
    run.tags(
        {
            tag.STAGE: "tune",
            tag.STUDY: settings.study,
            tag.METHOD: setup.plan.method,
            tag.CHAIN: " > ".join(setup.chain),
            tag.UPDATE: setup.plan.update,
            tag.PARENT_MODEL: settings.parent,
            tag.DATASET_DIGEST: setup.dataset.digest,
        }
    )
    if not run.history:
        params = {name: getattr(settings, name) for name in marked(settings, "logged")}
        params |= {"objective": setup.objective, "rungs": ",".join(map(str, setup.rungs))}
        run.params(params | {"trial_steps": setup.rungs[-1], "first_rung": setup.rungs[0]})
        log_inputs(run.run_id, setup.dataset, setup.split, setup.statistics, "training", settings.parent)


def _no_score(trials: list[TrialRecord]) -> HptError:
    """Why no trial has a score."""
    reasons = sorted({trial.reason for trial in trials if trial.state == FAILED and trial.reason})
    if reasons:
        return HptError(f"all trials failed: {'; '.join(reasons[:3])}")
    return HptError("the time was over before any trial had a score", "raise minutes, or lower first_rung")
