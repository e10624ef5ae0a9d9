"""Promotion: the alias `champion` moves to a version that is not worse on the same test images, and back again."""

from __future__ import annotations

import contextlib
import io
import math
from typing import Any

from mlflow.tracking import MlflowClient

from hpt_mlflow.errors import HptError, valid_unicode
from hpt_mlflow.evaluation.certainty import Comparison
from hpt_mlflow.settings import DEFAULT_MODEL_NAME
from hpt_mlflow.tracking import tags as tag
from hpt_mlflow.tracking.addresses import concrete_uri
from hpt_mlflow.tracking.connection import tracking_errors
from hpt_mlflow.tracking.models.alias_history import (
    ATTEMPTS,
    CHAMPION,
    Move,
    alias_version,
    champion_stack,
    moves,
    registered_model,
    whoever_this_is,
)
from hpt_mlflow.tracking.models.apply_promotion import Promotion, carry_out
from hpt_mlflow.tracking.models.evaluations import (
    Evaluation,
    common_evaluations,
    evaluate_command,
    evaluation_behind,
    evaluations_of,
    exists,
    is_version,
    same_model,
    split_version,
)
from hpt_mlflow.tracking.models.predictions import compare_evaluations
from hpt_mlflow.tracking.models.store import check_names
from hpt_mlflow.tracking.tags import CLASSIFIER_SUFFIX

# Figures are quotients: what is equal must not be worse by its last digit.
ROUNDING = 1e-12


def promote(
    model: str, alias: str = CHAMPION, margin: float = 0.0, force: bool = False, reason: str = "", to: str | None = None
) -> Promotion:
    """Move an alias to a version, if it is not worse than the present champion on the same test images.

    Args:
        model: address of a registered version: of a backbone, whose classifier follows it, or of a classifier.
        alias: to move.
        margin: by how much the figure may be worse than the champion's, in the units of the figure.
        force: promote whatever the comparison says.
        reason: why it is forced.
        to: copy the version into this registered model first, and move the alias there.

    Raises:
        HptError: it is worse, or cannot be compared, and is not forced; or MLflow refuses.
    """
    if force != bool(reason.strip()):
        raise HptError("force: to promote against the comparison takes both --force and --reason TEXT")
    if not margin >= 0:
        raise HptError(f"margin: {margin:g} is below 0; give how much worse the candidate may be")
    with tracking_errors(f"cannot promote {model}"):
        address = concrete_uri(model, "model", DEFAULT_MODEL_NAME)
        if not is_version(address):
            raise HptError(f"model: {address} is not a registered version; give models:/NAME/VERSION")
        name = to or split_version(address)[0]
        check_names(name, alias)
        for _ in range(ATTEMPTS):
            before, notes = _present(name, alias)
            if before and before in same_model(address):
                return Promotion(before, before, notes=[f"{before} is {alias} already"])
            refusal, evaluation, comparison = _judge(address, before, margin)
            # Comparing takes a while: somebody else may have promoted meanwhile.
            if _present(name, alias)[0] == before:
                break
        if refusal and not force:
            raise HptError(refusal)
        is_backbone = not evaluation_behind(address)
        if to:
            address = _copy(address, to)
        move = Move(
            time="",
            version=split_version(address)[1],
            before=split_version(before)[1] if before else "",
            by=whoever_this_is(),
            forced=refusal if force else "",
            reason=valid_unicode(reason) if force else "",
            **_figures(evaluation, comparison),
        )
        classifier = evaluation.classifier if evaluation and is_backbone else ""
        if classifier and not exists(classifier):
            notes.append(f"its classifier {classifier} is deleted")
            classifier = ""
        if classifier and to:
            classifier = _copy(classifier, to + CLASSIFIER_SUFFIX)
        return carry_out(Promotion(address, before, "", evaluation, comparison, notes), alias, move, classifier)


def go_back(name: str, alias: str = CHAMPION) -> Promotion:
    """Move an alias to the champion before the present one; done again, to the one before that.

    Raises:
        HptError: there is none, or MLflow refuses.
    """
    check_names(name, alias)
    with tracking_errors(f"cannot go back to the {alias} of {name} before"):
        model = registered_model(name)
        if model is None:
            raise HptError(f"name: there is no registered model {name!r}")
        history, now = moves(model, alias), alias_version(model, alias)
        notes = []
        stack = champion_stack(history, now)
        for version in reversed(stack[:-1] if now else stack):
            if version == now:
                continue
            if exists(f"models:/{name}/{version}"):
                break
            notes.append(f"models:/{name}/{version} was {alias} before, but is deleted")
        else:
            raise HptError(
                f"alias: {name} has no {alias} before {f'models:/{name}/{now}' if now else 'now'}"
                + "".join(f"; {note}" for note in notes)
            )
        address = f"models:/{name}/{version}"
        was = next((move for move in reversed(history) if move.version == version and not move.back), Move("", version))
        move = Move(
            time="",
            version=version,
            before=now,
            metric=was.metric,
            value=was.value,
            interval=was.interval,
            by=whoever_this_is(),
            back=True,
        )
        classifier = was.classifier
        if classifier and not exists(classifier):
            notes.append(f"its classifier {classifier} is deleted")
            classifier = ""
        before = f"models:/{name}/{now}" if now else ""
        return carry_out(Promotion(address, before, notes=notes), alias, move, classifier)


def _present(name: str, alias: str) -> tuple[str, list[str]]:
    """The address of the present champion or empty, and what is to say of it."""
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
        newest = next((one for one in evaluations_of(address) if one.test_digest), None)
        if newest is None:
            raise HptError(
                f"{address} has no finished evaluation that names its test images (those of earlier versions could use "
                "features of other images, and do not count); run: "
                f"{evaluate_command(address, evaluations_of(before) if before else [])}"
            )
        if not before:
            return "", newest, None
        # What the champion was chosen on is not to be exchanged for a test that suits the candidate.
        preferred = MlflowClient().get_model_version(*split_version(before)).tags.get(tag.TEST_DIGEST, "")
        champions, candidates = common_evaluations(before, address, preferred)
        comparison = compare_evaluations(champions, candidates)
    except HptError as error:
        return str(error), newest, None
    difference = comparison.primary.difference
    if difference.value >= -margin - ROUNDING:
        return "", candidates, comparison
    sure = "" if comparison.is_shown else ", which may be chance"
    return (
        f"{address} is worse than the champion {before}: {candidates.metric} {comparison.primary.b.value:.4f} against "
        f"{comparison.primary.a.value:.4f}, difference {difference.value:.4f} (95%: {difference.low:.4f} to "
        f"{difference.high:.4f}{sure}) is beyond the margin of {margin:g}; raise --margin, or --force --reason TEXT",
        candidates,
        comparison,
    )


def _figures(evaluation: Evaluation | None, comparison: Comparison | None) -> dict[str, Any]:
    """What a move says of the decisive figure."""
    if evaluation is None:
        return {}
    value, low, high = evaluation.primary
    difference = comparison.primary.difference.value if comparison else None
    interval = "" if math.isnan(low) else f"{low:.3f} to {high:.3f}"
    return {
        "metric": evaluation.metric,
        "value": None if math.isnan(value) else value,
        "interval": interval,
        "difference": difference,
    }


def _copy(address: str, to: str) -> str:
    """The copy of a version in another registered model: the one that is there, or a new one."""
    for same in same_model(address):
        if is_version(same) and split_version(same)[0] == to:
            return same
    # MLflow says on stderr what it does.
    with contextlib.redirect_stderr(io.StringIO()):
        copied = MlflowClient().copy_model_version(address, to)
    return f"models:/{to}/{copied.version}"
