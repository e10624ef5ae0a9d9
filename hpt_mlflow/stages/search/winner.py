"""The winner of a search: adapted in full like the paper's subset, and compared with it on the test images."""

from __future__ import annotations

from dataclasses import asdict, fields

from hpt_mlflow.augment.subset import Strengths, format_strengths
from hpt_mlflow.data.dataset import Dataset
from hpt_mlflow.errors import HptError
from hpt_mlflow.interval import Interval
from hpt_mlflow.options import passed_on
from hpt_mlflow.report.tuning_card import Winner
from hpt_mlflow.settings import AdaptSettings, EvaluateSettings, TuneSettings
from hpt_mlflow.stages.adapt import adapt
from hpt_mlflow.stages.evaluate import evaluate
from hpt_mlflow.stages.evaluation.task import prepare_task
from hpt_mlflow.stages.evaluation.unseen import check_unseen
from hpt_mlflow.stages.search.setup import TrialSetup
from hpt_mlflow.stages.training.resolve import preset_plan
from hpt_mlflow.tracking.models.evaluations import common_evaluations
from hpt_mlflow.tracking.models.predictions import compare_evaluations
from hpt_mlflow.tracking.models.store import FoundModel
from hpt_mlflow.tracking.runs.stage_run import NotDeliveredError
from hpt_mlflow.tuning.records import TrialRecord


def check_evaluation(settings: TuneSettings, dataset: Dataset, parent: FoundModel) -> None:
    """Refuse before the search what an evaluation of its winner would refuse after it."""
    evaluation = _evaluation(settings, parent.uri)
    check_unseen(evaluation, parent.uri, dataset, prepare_task(evaluation, dataset, parent.card))


def adapt_winner(settings: TuneSettings, setup: TrialSetup, best: TrialRecord) -> Winner:
    """Adapt in full with the paper's subset and with that of the best trial, and compare both if there are labels.

    Raises:
        HptError: an adaptation or an evaluation failed or could not be delivered; the run of the search needs both.
    """
    everything, own = setup.space.paper_subsets[0], setup.space.strengths
    is_paper = (best.subset, best.strengths) == (everything, own)
    try:
        # The winner last, so that it is the newest version.
        baseline = None if is_paper else _adapt(settings, everything, own, None)
        registered = _adapt(settings, best.subset or (), best.strengths, settings.alias)
        if setup.dataset.labels is None:
            return Winner(registered, baseline)
        return _compare_on_test(settings, registered, baseline)
    except NotDeliveredError as error:
        raise HptError(str(error)) from error


def _adapt(settings: TuneSettings, subset: tuple[str, ...], strengths: Strengths, alias: str | None) -> str:
    """Adapt as `hpt adapt` would, unless that was done before inside this run; returns the version."""
    shared = {field.name: getattr(settings, field.name) for field in fields(AdaptSettings)}
    changed = format_strengths(strengths, preset_plan(settings).strengths)
    trial = {"augment": ",".join(subset) or "none", "strengths": changed or None}
    return adapt(**shared | trial | {"alias": alias, "workers": None}).model_uri


def _compare_on_test(settings: TuneSettings, registered: str, baseline: str | None) -> Winner:
    if baseline:
        evaluate(**asdict(_evaluation(settings, baseline)))
    metrics = evaluate(**asdict(_evaluation(settings, registered))).metrics
    metric = next(name for name in ("auroc", "accuracy") if f"test/{name}" in metrics)
    result = Interval(*(metrics[f"test/{metric}{end}"] for end in ("", "_low", "_high")))
    if baseline is None:
        return Winner(registered, None, metric, result)
    compared = compare_evaluations(*common_evaluations(baseline, registered)).primary
    return Winner(registered, baseline, metric, result, compared.a, compared.difference)


def _evaluation(settings: TuneSettings, model: str) -> EvaluateSettings:
    shared = passed_on(settings, EvaluateSettings)
    return EvaluateSettings(model=model, data=settings.data, untrained=False, classifier_name="none", **shared)
