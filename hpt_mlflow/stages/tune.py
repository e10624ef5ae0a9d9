"""Tune: which augmentations suit the images. Short adaptations of one parent compete; the best is adapted in full."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, fields, replace
from typing import Any

from optuna.storages import BaseStorage
from optuna.trial import TrialState

from hpt_mlflow.augment.subset import Strengths, format_strengths
from hpt_mlflow.data.dataset import Dataset
from hpt_mlflow.data.sources import open_dataset
from hpt_mlflow.errors import HptError, without_secrets
from hpt_mlflow.evaluation.objectives import maximises
from hpt_mlflow.group import joins_others
from hpt_mlflow.interval import Interval
from hpt_mlflow.settings import AdaptSettings, EvaluateSettings, TuneSettings
from hpt_mlflow.stages.adapt import adapt
from hpt_mlflow.stages.evaluate import evaluate
from hpt_mlflow.stages.evaluation.task import prepare_task
from hpt_mlflow.stages.evaluation.unseen import check_unseen
from hpt_mlflow.stages.identify import identify
from hpt_mlflow.stages.result import StageResult, result_of
from hpt_mlflow.stages.search.report import TuneReport
from hpt_mlflow.stages.search.setup import TrialSetup, search_name, set_up_trials
from hpt_mlflow.stages.search.trials import Job, open_search
from hpt_mlflow.stages.search.workers import work_off
from hpt_mlflow.stages.signature import takes
from hpt_mlflow.tracking import tags as tag
from hpt_mlflow.tracking.connection import connect
from hpt_mlflow.tracking.identity import Identity
from hpt_mlflow.tracking.models.evaluations import common_evaluations
from hpt_mlflow.tracking.models.predictions import compare_evaluations
from hpt_mlflow.tracking.models.store import FoundModel, check_may_register, check_names, find_model
from hpt_mlflow.tracking.runs.dataset_input import log_dataset
from hpt_mlflow.tracking.runs.resume import Earlier
from hpt_mlflow.tracking.runs.search_runs import is_left, is_worked_on, joined_run, led_run, was_made_in, worker_name
from hpt_mlflow.tracking.runs.stage_run import NotDeliveredError, StageRun, stage_run
from hpt_mlflow.tuning.records import FAILED, TrialRecord, best_trial
from hpt_mlflow.tuning.search import IDENTITY, LEADER, LEADER_RUN, PRECISION, SharedSearch, attributes_of
from hpt_mlflow.tuning.storage import open_storage, storage_errors

# How long a study may be without a run after a process of another machine has made it.
NEW_STUDY_SECONDS = 60.0


@takes(TuneSettings)
def tune(chosen: TuneSettings) -> StageResult:
    """Search the augmentations with which a parent adapts best; adapt with them in full, evaluate and register that.

    The first process with a study leads it, with a run of its own; every other one with the same study and storage
    works along until no trial is left. A study that was interrupted goes on where it stopped.

    Raises:
        HptError: something is wrong that the user can mend; before any long work where that is possible.
    """
    if joins_others():
        raise HptError(
            "tune starts processes itself: use --workers, or the same command on each machine, without torchrun and "
            "WORLD_SIZE"
        )
    dataset = open_dataset(chosen.data, chosen.root)
    storage = open_storage(chosen.storage)
    connect()
    check_names(chosen.model_name, chosen.alias)
    if chosen.adapt_winner:
        check_may_register(chosen.model_name)
    name = search_name(chosen, dataset)
    with storage_errors(chosen.storage):
        noted = attributes_of(storage, name)
        parent = _find_parent(chosen, noted)
        # All trials of a study compute alike, wherever they run.
        chosen = replace(chosen, parent=parent.uri, precision=noted.get(PRECISION, chosen.precision))
        setup = set_up_trials(chosen, dataset, parent)
        chosen = replace(chosen, precision=setup.plan.precision)
        if chosen.adapt_winner and dataset.labels is not None:
            _check_evaluation(chosen, dataset, parent)
        study = open_search(chosen, storage, name, setup)
        made = study.create(setup.identity, maximises(setup.objective))
        run_id = "" if made else _await_run(storage, name)
        if not run_id:
            study.set_attribute(PRECISION, chosen.precision)
            study.set_attribute(LEADER, worker_name())
            return _lead(chosen, setup, study, None)
        return _go_on(chosen, setup, study, run_id)


def _find_parent(chosen: TuneSettings, noted: dict[str, Any]) -> FoundModel:
    """The parent; where `latest` has become what the study itself has registered, the parent that the study has."""
    parent = find_model(chosen.parent, "parent", chosen.model_name)
    first = json.loads(noted.get(IDENTITY, "{}")).get("parent", parent.uri)
    if parent.uri != first and LEADER_RUN in noted and was_made_in(parent.uri, noted[LEADER_RUN]):
        return find_model(first, "parent", chosen.model_name)
    return parent


def _await_run(storage: BaseStorage, name: str) -> str:
    """The run around a study that was made elsewhere; nothing where whoever made it has not come so far."""
    end = time.monotonic() + NEW_STUDY_SECONDS
    while True:
        noted = attributes_of(storage, name)
        if run_id := noted.get(LEADER_RUN):
            return str(run_id)
        if time.monotonic() > end or not is_worked_on("", noted.get(LEADER, ""), age_seconds=0):
            return ""
        time.sleep(1)


def _check_evaluation(chosen: TuneSettings, dataset: Dataset, parent: FoundModel) -> None:
    """Refuse before the search what an evaluation of its winner would refuse after it."""
    task = prepare_task(_evaluation(chosen, parent.uri), dataset, parent.card)
    check_unseen(_evaluation(chosen, parent.uri), parent.uri, dataset, task)


def _go_on(chosen: TuneSettings, setup: TrialSetup, study: SharedSearch, run_id: str) -> StageResult:
    """Lead a study that nobody leads any more; work along in one that another process leads, and see to its end."""
    while True:
        with led_run(run_id, study.name) as earlier:
            if earlier:
                study.set_attribute(LEADER, worker_name())
                return _lead(chosen, setup, study, earlier)
        with joined_run(run_id):
            print(f"study {study.name}: another process leads it; its run {run_id} shows the result")
            work_off(study, _job(chosen, study), setup.rungs[0], run_id, lambda: None)
        if not is_left(run_id):
            return StageResult(run_id, chosen.parent, (*setup.start.chain, setup.dataset.name), {})


def _lead(chosen: TuneSettings, setup: TrialSetup, study: SharedSearch, earlier: Earlier | None) -> StageResult:
    """Queue the trials, see them through, and do with the best what is asked for."""
    queue = setup.space.queue(chosen.trials, chosen.seed)
    study.fill(queue)
    if earlier and _is_done(chosen, study, setup.rungs[0], earlier):
        return result_of(earlier)
    title = f"tune {setup.dataset.name} < {setup.start.chain[-1]}"
    with stage_run(title, _identity(chosen, setup, study), earlier) as run:
        study.set_attribute(LEADER_RUN, run.run_id)
        report = TuneReport(run, chosen, setup, study, len(queue))
        _introduce(run, chosen, setup, study)
        work_off(study, _job(chosen, study), setup.rungs[0], run.run_id, report.update)
        trials = report.update()
        report.draw(trials)
        winner = best_trial(trials, report.maximise)
        if winner is None:
            raise HptError(_why_none(trials))
        result = {"tune/best_score": winner.score, "tune/steps": float(study.spent_steps())}
        model = chosen.parent
        if chosen.adapt_winner:
            try:
                outcome = _adapt_winner(chosen, setup, winner)
            except NotDeliveredError as error:
                # Of a nested run: this one is not done without it.
                raise HptError(str(error)) from error
            report.describe(trials, **outcome)
            model, result = outcome["registered"], result | _figures(outcome)
            run.metrics(_figures(outcome), len(trials))
        run.tags({tag.MODEL: model, tag.ADAPTED: str(chosen.adapt_winner).lower()})
        return StageResult(run.run_id, model, (*setup.start.chain, setup.dataset.name), result)


def _is_done(chosen: TuneSettings, study: SharedSearch, first_rung: int, earlier: Earlier) -> bool:
    """Whether a study was finished with the budget that it has now."""
    tags = earlier.run.data.tags
    asked = not chosen.adapt_winner or tags.get(tag.ADAPTED) == "true"
    left = study.has_steps_for(first_rung) and (study.promote() or study.trials(TrialState.WAITING))
    return earlier.run.info.status == "FINISHED" and tag.MODEL in tags and asked and not left


def _introduce(run: StageRun, chosen: TuneSettings, setup: TrialSetup, study: SharedSearch) -> None:
    """Log what is known before the first trial."""
    run.tags(
        {
            tag.STAGE: "tune",
            tag.STUDY: study.name,
            tag.CHAIN: " > ".join((*setup.start.chain, setup.dataset.name)),
            tag.UPDATE: setup.plan.update,
            tag.PARENT_MODEL: chosen.parent,
            tag.DATASET_DIGEST: setup.dataset.digest,
        }
    )
    if not run.history:
        resolved = {"objective": setup.objective, "rungs": ",".join(map(str, setup.rungs)), "study": study.name}
        # A budget may grow, and a parameter of a run cannot.
        free = ("trials", "budget_steps", "minutes", "workers", "adapt_winner", "storage")
        said = {name: value for name, value in asdict(chosen).items() if name not in free}
        run.params(said | {"trial_steps": setup.rungs[-1], "first_rung": setup.rungs[0]} | resolved)
        log_dataset(run.run_id, setup.dataset, setup.split, setup.statistics, "training")


def _job(chosen: TuneSettings, study: SharedSearch) -> Job:
    deadline = time.time() + 60 * chosen.minutes if chosen.minutes else None
    return Job(chosen, study.name, deadline)


def _identity(chosen: TuneSettings, setup: TrialSetup, study: SharedSearch) -> Identity:
    # The name is said, as the parent now has another address than the one that the default name is made from.
    named = replace(chosen, study=study.name, storage=without_secrets(chosen.storage))
    command = identify("tune", named, [setup.dataset], chosen.parent).command
    return Identity({"stage": "tune", "study": study.name, **setup.identity}, command)


def _why_none(trials: list[TrialRecord]) -> str:
    """Why no trial has a score."""
    reasons = sorted({trial.reason for trial in trials if trial.state == FAILED and trial.reason})
    if reasons:
        return f"all trials failed: {'; '.join(reasons[:3])}"
    return "the budget is spent before any trial has a score; raise budget_steps or minutes, or lower first_rung"


def _adapt_winner(chosen: TuneSettings, setup: TrialSetup, winner: TrialRecord) -> dict[str, Any]:
    """Adapt in full with the paper's subset and with the best one, and compare them on test where there are labels.

    Returns:
        What `report.tuning_card.tuning_card` says of it.
    """
    everything, own = setup.space.paper_subsets[0], setup.space.strengths
    # The winner last, so that it is the newest version.
    baseline = None
    if (winner.subset, winner.strengths) != (everything, own):
        baseline = _adapt(chosen, everything, own, None)
    registered = _adapt(chosen, winner.subset or (), winner.strengths, chosen.alias)
    outcome: dict[str, Any] = {"registered": registered, "baseline": baseline}
    if setup.dataset.labels is None:
        return outcome
    for model in filter(None, (baseline, registered)):
        figures = evaluate(**asdict(_evaluation(chosen, model))).metrics
    name = next(name for name in ("auroc", "accuracy") if f"test/{name}" in figures)
    outcome["metric"] = name
    outcome["result"] = Interval(*(figures[f"test/{name}{end}"] for end in ("", "_low", "_high")))
    if baseline:
        compared = compare_evaluations(*common_evaluations(baseline, registered)).primary
        outcome["baseline_result"] = Interval(*compared.a)
        outcome["difference"] = Interval(*compared.difference)
    return outcome


def _adapt(chosen: TuneSettings, subset: tuple[str, ...], strengths: Strengths, alias: str | None) -> str:
    """Adapt as `hpt adapt` would; inside this run, what was done before is not done again."""
    shared = {field.name: getattr(chosen, field.name) for field in fields(AdaptSettings)}
    of_trials = {"augment": ",".join(subset) or "none", "strengths": format_strengths(strengths) or None}
    result = adapt(**shared | of_trials | {"alias": alias, "workers": None})
    return result.model_uri


def _evaluation(chosen: TuneSettings, model: str) -> EvaluateSettings:
    shared = {name: getattr(chosen, name) for name in ("data", "root", "split_seed", "seed", "device", "cache_gib")}
    return EvaluateSettings(model=model, untrained=False, classifier_name="none", **shared)


def _figures(outcome: dict[str, Any]) -> dict[str, float]:
    """Metrics of the run around the study."""
    name = outcome.get("metric")
    found = {
        f"test/{name}": outcome.get("result"),
        f"baseline/{name}": outcome.get("baseline_result"),
        f"gain/{name}": outcome.get("difference"),
    }
    figures: dict[str, float] = {}
    for key, effect in found.items():
        if effect is not None:
            figures |= {key: effect.value, f"{key}_low": effect.low, f"{key}_high": effect.high}
    return figures
