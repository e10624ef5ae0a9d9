"""The stages behind a model, back to random or imported weights, with their data, method and metrics."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from hpt_mlflow.evaluation.protocols import trains_backbone
from hpt_mlflow.tracking import tags as tag
from hpt_mlflow.tracking.addresses import exists, is_version, model_id_in, source_of, split_version
from hpt_mlflow.tracking.connection import tracking_errors
from hpt_mlflow.tracking.models.copies import deltas_of
from hpt_mlflow.tracking.models.evaluations import Evaluation, evaluations_of
from hpt_mlflow.tracking.runs.inputs import logged_dataset

# More stages than anybody chains: the end for records that lead in a circle.
LONGEST_CHAIN = 50
METHOD = ("protocol", "labels", "arch", "image_size", "steps", "batch_size", "learning_rate", "augment", "seed")


@dataclass(frozen=True)
class Node:
    """One model of a chain and the stage that made it.

    Attributes:
        address: models:/NAME/VERSION, models:/m-ID or runs:/ID/NAME.
        aliases: that point to it.
        stage: `pretrain`, `adapt`, `import`, or `evaluate` for a classifier; empty if unknown.
        run_id: of the stage; None if unknown.
        dataset_name, dataset_digest: what it learned from; empty if unknown.
        sizes: number of images in all, and in `train`, `validation` and `test`.
        split_seed: None if unknown.
        update: what might change, as in `adapt`; empty for stages without training.
        method: settings by name.
        validation: the newest knn/val_accuracy, or None.
        evaluations: the newest per dataset, protocol and metric; a copy has none, its original has them.
        start: what the stage started from: an address, `random weights`, or a description of other weights.
        ends: whether the chain ends here.
        copied_from: the version that this one is a copy of, or empty.
        unknown: why the stages before this one are unknown; empty if they are known.
        is_delta: whether it keeps only its difference from `start`.
        deltas: addresses of the registered versions that keep only their difference from this one.
    """

    address: str
    aliases: tuple[str, ...]
    stage: str
    run_id: str | None
    dataset_name: str
    dataset_digest: str
    sizes: Mapping[str, int]
    split_seed: int | None
    update: str
    method: Mapping[str, str]
    validation: float | None
    evaluations: tuple[Evaluation, ...]
    start: str
    ends: bool
    copied_from: str = ""
    unknown: str = ""
    is_delta: bool = False
    deltas: tuple[str, ...] = ()

    @property
    def trained(self) -> bool:
        """Whether this stage trained the model: an evaluation does if it fine-tunes more than a head."""
        if self.copied_from or self.stage == "import":
            return False
        return self.stage != "evaluate" or trains_backbone(self.method.get("protocol", ""))


def lineage(address: str, with_evaluations: bool = True) -> list[Node]:
    """The chain behind a model, from it back to random or imported weights.

    If a model of the chain is deleted or unknown, the last node's `start` says so.

    Args:
        address: concrete.
        with_evaluations: whether to look for those of each model.

    Raises:
        HptError: MLflow does not answer, or there is no model at the address itself.
    """
    nodes: list[Node] = []
    with tracking_errors(f"cannot read the stages behind {address}"):
        while len(nodes) < LONGEST_CHAIN:
            try:
                nodes.append(_node(address, with_evaluations))
            except MlflowException as error:
                if not nodes or error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    raise
                start = f"{address}, which is deleted: the stages before it are unknown"
                unknown = f"{address} is deleted, and what it learned from is unknown"
                nodes[-1] = replace(nodes[-1], start=start, ends=True, unknown=unknown)
            if nodes[-1].ends:
                break
            address = nodes[-1].copied_from or nodes[-1].start
    return nodes


def what_is_unknown(nodes: list[Node]) -> str:
    """Why a chain may have more stages than these; empty if these are all."""
    if not nodes[-1].ends:
        return f"the chain has more than {LONGEST_CHAIN} stages"
    return nodes[-1].unknown


def _node(address: str, with_evaluations: bool) -> Node:
    """What MLflow knows of one model; raises MlflowException if there is none."""
    client = MlflowClient()
    aliases, tags, copied_from, run_id = _model(client, address)
    run = _run(client, run_id)
    if run:
        # Tags of the run take precedence: those of a version can be overwritten.
        tags = {**tags, **run.data.tags}
    params = {name.removeprefix(tag.SETTINGS_PREFIX): value for name, value in (run.data.params if run else {}).items()}
    if tag.PROTOCOL in tags:
        params["protocol"] = tags[tag.PROTOCOL]
    name, sizes = logged_dataset(run) if run else ("", {})
    is_classifier = tag.EVALUATION in tags
    start, ends, unknown = _start(tags, params, run)
    return Node(
        address=address,
        aliases=aliases,
        stage="evaluate" if is_classifier else tags.get(tag.STAGE, ""),
        run_id=run.info.run_id if run else None,
        dataset_name=name or tags.get(tag.CHAIN, "").rpartition(" > ")[2],
        dataset_digest=tags.get(tag.DATASET_DIGEST, ""),
        sizes=sizes,
        split_seed=int(params["split_seed"]) if "split_seed" in params else None,
        update=tags.get(tag.UPDATE, ""),
        method={key: params[key] for key in METHOD if params.get(key, "None") != "None"},
        validation=run.data.metrics.get("knn/val_accuracy") if run and not is_classifier else None,
        evaluations=_newest_of_each(evaluations_of(address)) if with_evaluations and not copied_from else (),
        start=start,
        ends=ends and not copied_from,
        copied_from=copied_from,
        unknown="" if copied_from else unknown,
        is_delta=tags.get(tag.STORE) == tag.DELTA,
        deltas=tuple(deltas_of(address)) if is_version(address) else (),
    )


def _model(client: MlflowClient, address: str) -> tuple[tuple[str, ...], dict[str, str], str, str | None]:
    """Aliases, tags, the version that it is a copy of, and the run that made it."""
    if address.startswith("runs:/"):
        named = address.removeprefix("runs:/").partition("/")[0]
        return (), dict(client.get_run(named).data.tags), "", named
    if not is_version(address):
        model = client.get_logged_model(address.removeprefix("models:/"))
        return (), dict(model.tags), "", model.source_run_id
    version = client.get_model_version(*split_version(address))
    aliases = tuple(client.get_registered_model(version.name).aliases.items())
    own = tuple(sorted(alias for alias, number in aliases if str(number) == str(version.version)))
    source = source_of(version)
    if is_version(source) and exists(source):
        return own, dict(version.tags), source, None
    run_id = version.tags.get(tag.EVALUATION) or version.run_id
    if not run_id:
        model_id = model_id_in(source)
        with suppress(MlflowException):
            run_id = client.get_logged_model(model_id).source_run_id if model_id else None
    return own, dict(version.tags), "", run_id


def _run(client: MlflowClient, run_id: str | None) -> Run | None:
    """A run, even a deleted one; None if it is deleted for good."""
    if not run_id:
        return None
    try:
        return client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def _start(tags: Mapping[str, Any], params: Mapping[str, str], run: Run | None) -> tuple[str, bool, str]:
    """What a stage started from, whether the chain ends there, and why its start is unknown."""
    if parent := tags.get(tag.PARENT_MODEL):
        return parent, False, ""
    if weights := tags.get(tag.WEIGHTS):
        digest = tags.get(tag.WEIGHTS_SHA256, "")
        details = ", ".join(filter(None, (tags.get(tag.WEIGHTS_FORMAT), f"sha256 {digest[:12]}" if digest else "")))
        return f"imported weights {weights}" + (f" ({details})" if details else ""), True, ""
    if tags.get(tag.STAGE) == "pretrain":
        return (f"random weights (seed {params['seed']})" if "seed" in params else "random weights"), True, ""
    if tags.get(tag.STAGE) == "import":
        return "imported weights", True, ""
    unknown = "weights of unknown origin" if run else "weights of unknown origin: its run is gone"
    return unknown, True, unknown


def _newest_of_each(evaluations: list[Evaluation]) -> tuple[Evaluation, ...]:
    """The newest evaluation per dataset, test images, protocol and metric, newest first."""
    newest: dict[tuple[str, ...], Evaluation] = {}
    for each in evaluations:
        newest.setdefault((each.dataset, each.dataset_digest, *each.key), each)
    return tuple(newest.values())
