"""Finished evaluations in the tracking store: of one model, and of two on the same test images."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable
from dataclasses import dataclass

import mlflow
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from hpt_mlflow.data.contents import VERSION
from hpt_mlflow.errors import HptError
from hpt_mlflow.evaluation.protocols import DEFAULT_PROTOCOL
from hpt_mlflow.interval import Interval
from hpt_mlflow.tracking import tags as tag
from hpt_mlflow.tracking.addresses import addresses_of_model, is_version, split_version
from hpt_mlflow.tracking.connection import tracking_errors
from hpt_mlflow.tracking.runs.inputs import logged_dataset


@dataclass(frozen=True)
class Evaluation:
    """One finished evaluation.

    Attributes:
        model: address of the model.
        chain: the datasets behind it.
        dataset: its name.
        test_digest: identifies the set of test images; empty if unknown, and for evaluations of earlier versions, which
            could use the cached features of other images.
        metric: name of the primary metric: `test/accuracy`, or `test/auroc` for multi-label data.
        protocol: see `evaluation.protocols`.
        classifier: address of the classifier that it registered, or empty.
        started: milliseconds since 1970.
        metrics: the last value of each.
        params: settings as they were resolved, by `settings/NAME`.
    """

    run_id: str
    experiment_id: str
    model: str
    chain: str
    dataset: str
    dataset_digest: str
    test_digest: str
    metric: str
    protocol: str
    classifier: str
    started: int
    metrics: dict[str, float]
    params: dict[str, str]

    @property
    def key(self) -> tuple[str, str, str]:
        """What two evaluations must share to be compared."""
        return (self.test_digest, self.protocol, self.metric)

    @property
    def primary(self) -> Interval:
        """The primary metric and its 95% interval; NaN if missing."""
        return self.interval(self.metric)

    def interval(self, metric: str) -> Interval:
        """A metric on the test images and its 95% interval; NaN if missing."""
        return Interval(*(self.metrics.get(f"{metric}{end}", math.nan) for end in ("", "_low", "_high")))

    def command(self, model: str) -> str:
        """The command that evaluates another model in the same way."""
        words = ["hpt", "evaluate", "--model", model, "--data", self.params.get(tag.setting_param("data"), "FOLDER")]
        if (seed := self.params.get(tag.setting_param("split_seed"), "0")) != "0":
            words += ["--split-seed", seed]
        if self.protocol not in ("", DEFAULT_PROTOCOL):
            words += ["--protocol", self.protocol]
        return shlex.join(words)


def finished_evaluations(model: str | None = None) -> list[Evaluation]:
    """The finished evaluations of all experiments, newest first.

    Args:
        model: only those of the model at exactly this address.
    """
    of_model = f" and tags.`{tag.PARENT_MODEL}` = '{model}'" if model else ""
    runs = mlflow.search_runs(
        [experiment.experiment_id for experiment in mlflow.search_experiments()],
        f"tags.`{tag.STAGE}` = 'evaluate' and attributes.status = 'FINISHED'{of_model}",
        order_by=["attributes.start_time DESC"],
        output_format="list",
    )
    return [_evaluation(run) for run in runs]


def evaluations_of(address: str) -> list[Evaluation]:
    """The finished evaluations of a model, newest first; of a classifier, the one that it came from.

    Args:
        address: concrete: models:/NAME/VERSION, models:/m-ID or runs:/ID/NAME.

    Raises:
        HptError: MLflow does not answer, or the evaluation of a classifier is deleted.
    """
    with tracking_errors(f"cannot list the evaluations of {address}"):
        addresses = addresses_of_model(address)
        if run_id := evaluation_behind(address):
            return [_evaluation(MlflowClient().get_run(run_id))]
        by_run = {each.run_id: each for same in addresses for each in finished_evaluations(same)}
        return sorted(by_run.values(), key=lambda each: each.started, reverse=True)


def evaluation_behind(address: str) -> str:
    """The run that a classifier came from; empty for a backbone."""
    if not is_version(address):
        return ""
    version = MlflowClient().get_model_version(*split_version(address))
    return str(version.tags.get(tag.EVALUATION, ""))


def common_evaluations(address_a: str, address_b: str, preferred: str = "") -> tuple[Evaluation, Evaluation]:
    """The newest evaluations of two models on the same test images, by the same protocol, with the same metric.

    Args:
        address_a, address_b: concrete.
        preferred: digest of the test images to compare on if both were evaluated on them.

    Raises:
        HptError: there are none; the remedy is the command that makes one.
    """
    all_a, all_b = evaluations_of(address_a), evaluations_of(address_b)
    for address, own, other in ((address_a, all_a, all_b), (address_b, all_b, all_a)):
        if not own:
            raise HptError(f"{address} has no finished evaluation", f"run: {evaluate_command(address, other)}")
    newest_a = {each.key: each for each in reversed(all_a) if each.test_digest}
    pairs = [(newest_a[each.key], each) for each in all_b if each.key in newest_a]
    if not pairs:
        raise HptError(
            f"{address_a} and {address_b} were not evaluated on the same test images, protocol and metric "
            f"({_described(all_a[0])}; {_described(all_b[0])})",
            f"run: {evaluate_command(address_a, all_b)}",
        )
    return next((pair for pair in pairs if pair[0].test_digest == preferred), pairs[0])


def _evaluation(run: Run) -> Evaluation:
    tags = run.data.tags
    return Evaluation(
        run_id=run.info.run_id,
        experiment_id=run.info.experiment_id,
        model=tags.get(tag.PARENT_MODEL, ""),
        chain=tags.get(tag.CHAIN, ""),
        dataset=logged_dataset(run)[0],
        dataset_digest=tags.get(tag.DATASET_DIGEST, ""),
        test_digest=tags.get(tag.TEST_DIGEST, "") if tags.get(tag.CONTENTS) == str(VERSION) else "",
        metric=tags.get(tag.METRIC, "test/accuracy"),
        protocol=tags.get(tag.PROTOCOL, ""),
        classifier=tags.get(tag.CLASSIFIER, ""),
        started=run.info.start_time,
        metrics=dict(run.data.metrics),
        params=dict(run.data.params),
    )


def _described(evaluation: Evaluation) -> str:
    digest = evaluation.test_digest or "unknown to this version of hpt_mlflow"
    metric = f"{evaluation.metric} by protocol {evaluation.protocol or 'unknown'}"
    return f"{evaluation.model}: {metric} on {evaluation.dataset}, test images {digest}"


def evaluate_command(address: str, like: Iterable[Evaluation]) -> str:
    """The command that evaluates a model in the same way as the first of these evaluations."""
    behind = evaluation_behind(address)
    model = MlflowClient().get_run(behind).data.tags.get(tag.PARENT_MODEL, address) if behind else address
    newest = next(iter(like), None)
    return newest.command(model) if newest else f"hpt evaluate --model {model} --data LABELLED_FOLDER"
