"""Promotion: the alias `champion` moves to a version that is not worse on the same test images, and back again."""

from __future__ import annotations

import contextlib
import io
import math
from dataclasses import dataclass, field, replace
from typing import Any

from mlflow.tracking import MlflowClient

from hpt_mlflow.errors import HptError, valid_unicode
from hpt_mlflow.evaluation.certainty import Comparison
from hpt_mlflow.models.onnx_graph import require_onnx
from hpt_mlflow.settings import DEFAULT_MODEL_NAME
from hpt_mlflow.tracking import tags as tag
from hpt_mlflow.tracking.addresses import addresses_of_model, concrete_uri, exists, is_version, split_version
from hpt_mlflow.tracking.connection import tracking_errors, without_retries
from hpt_mlflow.tracking.models.alias_history import (
    CHAMPION,
    Move,
    alias_version,
    champion_stack,
    moves,
    now_as_text,
    registered_model,
    user_at_host,
)
from hpt_mlflow.tracking.models.alias_move import Target, move_aliases
from hpt_mlflow.tracking.models.copies import copy_whole, is_delta
from hpt_mlflow.tracking.models.evaluations import (
    Evaluation,
    common_evaluations,
    evaluate_command,
    evaluation_behind,
    evaluations_of,
)
from hpt_mlflow.tracking.models.lineage import lineage
from hpt_mlflow.tracking.models.predictions import compare_evaluations
from hpt_mlflow.tracking.models.standalone import copy_standalone
from hpt_mlflow.tracking.models.store import check_may_register, check_names
from hpt_mlflow.tracking.tags import CLASSIFIER_SUFFIX

# Metrics are quotients: equal ones must not differ by their last digit.
ROUNDING = 1e-12


@dataclass
class Promotion:
    """A moved alias.

    Attributes:
        address: the version that it moved to.
        before: the address that the alias pointed to before, or empty.
        classifier: the classifier whose alias moved with it, or empty.
        evaluation: the decisive one; None if it was forced without one, or went back.
        comparison: with the champion before, on the images that both were tested on; None if there was none.
        notes: what else the user should know, one sentence each.
    """

    address: str
    before: str
    classifier: str = ""
    evaluation: Evaluation | None = None
    comparison: Comparison | None = None
    notes: list[str] = field(default_factory=list)


def promote(
    model: str,
    alias: str = CHAMPION,
    margin: float = 0.0,
    force: bool = False,
    reason: str = "",
    to: str | None = None,
    standalone: bool = True,
) -> Promotion:
    """Move an alias to a version, if it is not worse than the present champion on the same test images.

    Args:
        model: address of a registered version: of a backbone, whose classifier follows it, or of a classifier.
        alias: to move.
        margin: by how much the metric may be worse than the champion's, in units of the metric.
        force: promote whatever the result of the comparison.
        reason: why it is forced.
        to: copy the version into this registered model first, and move the alias there.
        standalone: whether the copy is to need no package but onnxruntime.

    Raises:
        HptError: it is worse or cannot be compared, and is not forced; or MLflow refuses.
    """
    if force != bool(reason.strip()):
        raise HptError("to promote against the comparison takes both --force and --reason TEXT", setting="force")
    if not margin >= 0:
        raise HptError(f"{margin:g} is below 0", "give how much worse the candidate may be", setting="margin")
    with tracking_errors(f"cannot promote {model}"):
        address = concrete_uri(model, "model", DEFAULT_MODEL_NAME)
        if not is_version(address):
            raise HptError(f"{address} is not a registered version", "give models:/NAME/VERSION", setting="model")
        name = to or split_version(address)[0]
        check_names(name, alias)
        if to and standalone:
            require_onnx("to")
        before, notes = _present(name, alias)
        if before and before in addresses_of_model(address):
            return Promotion(before, before, notes=[f"{before} is {alias} already"])
        refusal, evaluation, comparison = _judge(address, before, margin)
        if refusal and not force:
            raise HptError(refusal)
        newest = _present(name, alias)[0] or "no model"
        if newest != (before or "no model"):
            raise HptError(f"{newest} became {alias} during the comparison", "compare with it: promote again")
        is_backbone = not evaluation_behind(address)
        classifier = _existing(evaluation.classifier if evaluation and is_backbone else "", notes)
        _check_may_move(address, classifier, alias, to)
        if to:
            address = _copy(address, to, standalone)
            classifier = classifier and _copy(classifier, to + CLASSIFIER_SUFFIX, standalone)
        move = Move(
            time=now_as_text(),
            version=split_version(address)[1],
            before=split_version(before)[1] if before else "",
            by=user_at_host(),
            forced=refusal if force else "",
            reason=valid_unicode(reason) if force else "",
            **_decisive(evaluation, comparison),
        )
        return _apply(Promotion(address, before, classifier, evaluation, comparison, notes), alias, move)


def roll_back(name: str, alias: str = CHAMPION) -> Promotion:
    """Move an alias to the champion before the present one; a second time, to the one before that.

    Raises:
        HptError: there is none, or MLflow refuses.
    """
    check_names(name, alias)
    with tracking_errors(f"cannot restore the {alias} of {name} before"):
        model = registered_model(name)
        if model is None:
            raise HptError(f"there is no registered model {name!r}", setting="name")
        history, now = moves(model, alias), alias_version(model, alias)
        notes: list[str] = []
        stack = champion_stack(history, now)
        for version in reversed(stack[:-1] if now else stack):
            if version == now:
                continue
            if exists(f"models:/{name}/{version}"):
                break
            notes.append(f"models:/{name}/{version} was {alias} before, but is deleted")
        else:
            raise HptError(
                f"{name} has no {alias} before {f'models:/{name}/{now}' if now else 'now'}",
                "; ".join(notes),
                setting="alias",
            )
        address = f"models:/{name}/{version}"
        was = next((move for move in reversed(history) if move.version == version and not move.back), Move("", version))
        classifier = _existing(was.classifier, notes)
        _check_may_move(address, classifier, alias, None)
        move = Move(
            time=now_as_text(),
            version=version,
            before=now,
            metric=was.metric,
            value=was.value,
            interval=was.interval,
            by=user_at_host(),
            back=True,
        )
        before = f"models:/{name}/{now}" if now else ""
        return _apply(Promotion(address, before, classifier, notes=notes), alias, move)


def _check_may_move(address: str, classifier: str, alias: str, to: str | None) -> None:
    """Refuse what the registry would refuse, before anything is copied or changed."""
    for each in filter(None, (address, classifier)):
        suffix = CLASSIFIER_SUFFIX if each == classifier else ""
        check_may_register(to + suffix if to else split_version(each)[0], alias, setting="to" if to else "model")


def _apply(promotion: Promotion, alias: str, move: Move) -> Promotion:
    """Tag the version, and move the alias to it; the same for its classifier."""
    name = split_version(promotion.address)[0]
    targets = [_target(promotion.address, replace(move, classifier=promotion.classifier), promotion.evaluation)]
    if promotion.classifier:
        classifier_name, version = split_version(promotion.classifier)
        before = alias_version(registered_model(classifier_name), alias)
        if before != version:
            move = replace(move, version=version, before=before)
            targets.append(_target(promotion.classifier, move, promotion.evaluation))
    else:
        classifier_name = name + CLASSIFIER_SUFFIX
        if stays := alias_version(registered_model(classifier_name), alias):
            promotion.notes.append(f"no classifier moved: the {alias} of {classifier_name} stays version {stays}")
    move_aliases(alias, targets)
    return promotion


def _target(address: str, move: Move, evaluation: Evaluation | None) -> Target:
    """A version that is promoted, with its tags."""
    tags = {tag.PROMOTED: move.time, tag.PROMOTED_BY: move.by}
    if not move.back:
        tags[tag.LINEAGE] = " > ".join(node.address for node in reversed(lineage(address, with_evaluations=False)))
    if evaluation:
        tags |= {
            tag.METRIC: evaluation.metric,
            tag.VALUE: f"{evaluation.primary.value:.6g}",
            tag.INTERVAL: move.interval,
            tag.TEST_DIGEST: evaluation.test_digest,
            # DATASET_DIGEST is that of the images that the version was trained on.
            tag.TEST_DATASET_DIGEST: evaluation.dataset_digest,
            tag.DECISIVE_EVALUATION: evaluation.run_id,
        }
    if move.reason:
        tags[tag.FORCED] = f"{move.by} at {move.time}: {move.reason} (against: {move.forced or 'nothing'})"
    return Target(split_version(address)[0], move, tags)


def _existing(classifier: str, notes: list[str]) -> str:
    """A classifier's address; empty, with a note, if it is deleted."""
    if not classifier or exists(classifier):
        return classifier
    notes.append(f"its classifier {classifier} is deleted")
    return ""


def _present(name: str, alias: str) -> tuple[str, list[str]]:
    """The address of the present champion or empty, and notes."""
    version = alias_version(registered_model(name), alias)
    if not version:
        return "", []
    address = f"models:/{name}/{version}"
    if exists(address):
        return address, []
    return "", [f"{alias} pointed to {address}, which is deleted; there was nothing to compare with"]


def _judge(address: str, before: str, margin: float) -> tuple[str, Evaluation | None, Comparison | None]:
    """Why a candidate is refused, or empty; the decisive evaluation of it; and the comparison with the champion."""
    newest: Evaluation | None = None
    try:
        newest = next((each for each in evaluations_of(address) if each.test_digest), None)
        if newest is None:
            raise HptError(
                f"{address} has no finished evaluation that names its test images (those of earlier versions could use "
                "features of other images, and do not count)",
                f"run: {evaluate_command(address, evaluations_of(before) if before else [])}",
            )
        if not before:
            return "", newest, None
        # The test that chose the champion must not be exchanged for one that suits the candidate.
        preferred = MlflowClient().get_model_version(*split_version(before)).tags.get(tag.TEST_DIGEST, "")
        champions, candidates = common_evaluations(before, address, preferred)
        comparison = compare_evaluations(champions, candidates)
    except HptError as error:
        return str(error), newest, None
    difference = comparison.primary.difference
    if difference.value >= -margin - ROUNDING:
        return "", candidates, comparison
    chance = "" if comparison.is_shown else ", which may be chance"
    refusal = (
        f"{address} is worse than the champion {before}: {candidates.metric} {comparison.primary.b.value:.4f} against "
        f"{comparison.primary.a.value:.4f}, difference {difference.value:.4f} (95%: {difference.low:.4f} to "
        f"{difference.high:.4f}{chance}) is beyond the margin of {margin:g}; raise --margin, or --force --reason TEXT"
    )
    return refusal, candidates, comparison


def _decisive(evaluation: Evaluation | None, comparison: Comparison | None) -> dict[str, Any]:
    """The decisive metric, as a move records it."""
    if evaluation is None:
        return {}
    primary = evaluation.primary
    return {
        "metric": evaluation.metric,
        "value": None if math.isnan(primary.value) else primary.value,
        "interval": primary.ends,
        "difference": comparison.primary.difference.value if comparison else None,
    }


def _copy(address: str, to: str, standalone: bool) -> str:
    """The copy of a version in another registered model: an existing one, or a new one."""
    for same in addresses_of_model(address):
        if is_version(same) and split_version(same)[0] == to:
            return same
    if standalone:
        return copy_standalone(address, to)
    if is_delta(address):
        return copy_whole(address, to)
    # MLflow prints its progress to stderr.
    with contextlib.redirect_stderr(io.StringIO()), without_retries():
        copied = MlflowClient().copy_model_version(address, to)
    return f"models:/{to}/{copied.version}"
