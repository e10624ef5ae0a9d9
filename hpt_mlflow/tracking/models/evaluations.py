"""Finished evaluations in the tracking store: of one model, and of two on the same test images."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterable
from dataclasses import dataclass

import mlflow
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from hpt_mlflow.data.contents import VERSION
from hpt_mlflow.errors import HptError
from hpt_mlflow.evaluation.protocols import DEFAULT_PROTOCOL
from hpt_mlflow.interval import Interval
from hpt_mlflow.tracking import tags as tag
from hpt_mlflow.tracking.connection import tracking_errors

# A copy of a copy of a copy; more is a circle.
LONGEST_TRAIL = 20


@dataclass(frozen=True)
class Evaluation:
    """One finished evaluation.

    Attributes:
        model: address of the model.
        chain: the datasets behind it.
        dataset: its name.
        test_digest: names exactly the set of test images; empty for evaluations that say nothing of it, and for those
            of earlier versions, which could take the kept features of other images for theirs.
        metric: name of the primary figure: `test/accuracy`, or `test/auroc` for labels.
        protocol: see `evaluation.protocols`.
        classifier: address of the classifier that it registered, or empty.
        started: milliseconds since 1970.
        metrics: the last value of each.
        params: settings as they were resolved, by `settings/NAME`.
    """

    run_id: str
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
        """What two evaluations must share so that their figures may be compared."""
        return (self.test_digest, self.protocol, self.metric)

    @property
    def primary(self) -> Interval:
        """The primary figure and its 95% interval; NaN for what is not there."""
        return self.interval(self.metric)

    def interval(self, metric: str) -> Interval:
        """A figure of the test images and its 95% interval; NaN for what is not there."""
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
        model: only those of the model at this very address.
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
        HptError: MLflow does not answer, or the evaluation of a classifier is gone.
    """
    with tracking_errors(f"cannot list the evaluations of {address}"):
        trail = same_model(address)
        run_id = evaluation_behind(trail[0])
        if run_id:
            return [_evaluation(MlflowClient().get_run(run_id))]
        found = {one.run_id: one for same in trail for one in finished_evaluations(same)}
        return sorted(found.values(), key=lambda one: one.started, reverse=True)


def evaluation_behind(address: str) -> str:
    """The run that a classifier came from; empty for a backbone."""
    if not is_version(address):
        return ""
    version = MlflowClient().get_model_version(*split_version(address))
    return str(version.tags.get(tag.EVALUATION, ""))


def same_model(address: str) -> list[str]:
    """All addresses of one model, beginning with the given one: its version, what that was copied from, copies of it.

    Raises whatever MLflow does.
    """
    client = MlflowClient()
    addresses = [address]
    while is_version(addresses[-1]) and len(addresses) < LONGEST_TRAIL:
        # What a copy was made from may be deleted.
        source = _source(client, addresses[-1]) if len(addresses) == 1 or exists(addresses[-1]) else ""
        if not source or source in addresses:
            break
        addresses.append(source)
    for known in addresses:
        copies = client.search_model_versions(f"source_path='{known}'") if len(addresses) < LONGEST_TRAIL else []
        # Two versions of one name made from one milestone, and copies in other registered models.
        addresses += [at for copy in copies if (at := f"models:/{copy.name}/{copy.version}") not in addresses]
    return addresses


def is_version(address: str) -> bool:
    """Whether an address is models:/NAME/VERSION."""
    return address.startswith("models:/") and not address.startswith("models:/m-") and "/" in address[8:]


def split_version(address: str) -> tuple[str, str]:
    """NAME and VERSION of models:/NAME/VERSION."""
    name, _, version = address.removeprefix("models:/").rpartition("/")
    return name, version


def exists(address: str) -> bool:
    """Whether a registered version is there, and not deleted."""
    return find_version(address) is not None


def find_version(address: str) -> ModelVersion | None:
    """The registered version of an address; None where it is deleted."""
    try:
        return MlflowClient().get_model_version(*split_version(address))
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def common_evaluations(address_a: str, address_b: str, preferred: str = "") -> tuple[Evaluation, Evaluation]:
    """The newest evaluations of two models on the same test images, by the same protocol, with the same figure.

    Args:
        address_a, address_b: concrete.
        preferred: the digest of the test images to compare on, where both were evaluated on them.

    Raises:
        HptError: there are none; it names the command that would make one.
    """
    all_a, all_b = evaluations_of(address_a), evaluations_of(address_b)
    for address, found, other in ((address_a, all_a, all_b), (address_b, all_b, all_a)):
        if not found:
            raise HptError(f"{address} has no finished evaluation; run: {evaluate_command(address, other)}")
    newest_a = {one.key: one for one in reversed(all_a) if one.test_digest}
    pairs = [(newest_a[one.key], one) for one in all_b if one.key in newest_a]
    if not pairs:
        raise HptError(
            f"{address_a} and {address_b} were not evaluated on the same test images, protocol and figure "
            f"({_described(all_a[0])}; {_described(all_b[0])}); run: {evaluate_command(address_a, all_b)}"
        )
    return next((pair for pair in pairs if pair[0].test_digest == preferred), pairs[0])


def _evaluation(run: Run) -> Evaluation:
    tags = run.data.tags
    return Evaluation(
        run_id=run.info.run_id,
        model=tags.get(tag.PARENT_MODEL, ""),
        chain=tags.get(tag.CHAIN, ""),
        dataset=dataset_input(run)[0],
        dataset_digest=tags.get(tag.DATASET_DIGEST, ""),
        test_digest=tags.get(tag.TEST_DIGEST, "") if tags.get(tag.CONTENTS) == str(VERSION) else "",
        metric=tags.get(tag.METRIC, "test/accuracy"),
        protocol=tags.get(tag.PROTOCOL, ""),
        classifier=tags.get(tag.CLASSIFIER, ""),
        started=run.info.start_time,
        metrics=dict(run.data.metrics),
        params=dict(run.data.params),
    )


def dataset_input(run: Run) -> tuple[str, dict[str, int]]:
    """Name and sizes of the dataset of a run; nothing where it has logged none."""
    inputs = run.inputs.dataset_inputs if run.inputs else []
    if not inputs:
        return "", {}
    try:
        profile = json.loads(inputs[0].dataset.profile or "{}")
    except ValueError:
        profile = {}
    return inputs[0].dataset.name, profile if isinstance(profile, dict) else {}


def _source(client: MlflowClient, address: str) -> str:
    """What a version was made from: models:/m-ID, or models:/NAME/VERSION of which it is a copy."""
    source = client.get_model_version(*split_version(address)).source or ""
    if is_version(source):
        return source
    model_id = next((part for part in source.split("/") if part.startswith("m-")), None)
    return f"models:/{model_id}" if model_id else ""


def _described(evaluation: Evaluation) -> str:
    digest = evaluation.test_digest or "unknown to this version of hpt_mlflow"
    figure = f"{evaluation.metric} by protocol {evaluation.protocol or 'unknown'}"
    return f"{evaluation.model}: {figure} on {evaluation.dataset}, test images {digest}"


def evaluate_command(address: str, like: Iterable[Evaluation]) -> str:
    """The command that makes a model comparable with what these evaluations judged."""
    behind = evaluation_behind(address)
    model = MlflowClient().get_run(behind).data.tags.get(tag.PARENT_MODEL, address) if behind else address
    newest = next(iter(like), None)
    return newest.command(model) if newest else f"hpt evaluate --model {model} --data LABELLED_FOLDER"
