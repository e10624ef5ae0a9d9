"""Applying a promotion: the alias moves, its classifier's with it, and both versions are tagged."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from hpt_mlflow.errors import HptError
from hpt_mlflow.evaluation.certainty import Comparison
from hpt_mlflow.tracking import tags as tag
from hpt_mlflow.tracking.addresses import addresses_of_model, exists, split_version
from hpt_mlflow.tracking.connection import reason
from hpt_mlflow.tracking.models.alias_history import Move, alias_version, move_alias, moves, next_time, registered_model
from hpt_mlflow.tracking.models.evaluations import Evaluation
from hpt_mlflow.tracking.models.lineage import chain_of_addresses


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


def apply_promotion(promotion: Promotion, alias: str, move: Move, classifier: str) -> Promotion:
    """Move the alias and that of the classifier, and tag the versions.

    Both moves have the same time, so that one of simultaneous promotions comes last for both.

    Args:
        promotion: without its classifier.
        move: its time is set here.
        classifier: address of the classifier to move along, or empty.

    Raises:
        HptError: it is done and recorded, but another promotion followed at the same time.
    """
    name = split_version(promotion.address)[0]
    known = moves(registered_model(name), alias)
    classifier_name = split_version(classifier)[0]
    classifier_model = registered_model(classifier_name) if classifier else None
    move = replace(move, time=next_time(known, moves(classifier_model, alias)), classifier=classifier)
    newest = move_alias(name, alias, move)
    _mark(promotion, move, newest)
    if classifier:
        promotion.classifier = classifier
        before = alias_version(classifier_model, alias)
        own = replace(move, version=split_version(classifier)[1], before=before, classifier="")
        if before != own.version:
            newest_classifier = move_alias(classifier_name, alias, own)
            before = f"models:/{classifier_name}/{before}" if before else ""
            _mark(Promotion(classifier, before, "", promotion.evaluation), own, newest_classifier)
    else:
        promotion.notes += _left_behind(f"{name}{tag.CLASSIFIER_SUFFIX}", alias, promotion.address)
    if newest != move:
        raise HptError(
            f"{promotion.address} was promoted, but models:/{name}/{newest.version} was at the same time by "
            f"{newest.by}, and is {alias} now",
            f"both are recorded, see: hpt history {name} --alias {alias}",
            setting="alias",
        )
    promotion.notes += [
        f"models:/{name}/{each.version} was promoted at the same time by {each.by}; {promotion.address} was not "
        "compared with it"
        for each in moves(registered_model(name), alias)
        if each.time < move.time and each not in known
    ]
    return promotion


def _mark(promotion: Promotion, move: Move, newest: Move) -> None:
    """Tag the promoted version and the one that it replaced; a failure becomes a note, since the alias has moved."""
    client = MlflowClient()
    name = split_version(promotion.address)[0]
    evaluation = promotion.evaluation
    tags = {tag.PROMOTED: move.time, tag.PROMOTED_BY: move.by}
    if not move.back:
        tags[tag.LINEAGE] = " > ".join(chain_of_addresses(promotion.address))
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
    if move.forced or move.reason:
        tags[tag.FORCED] = f"{move.by} at {move.time}: {move.reason} (against: {move.forced or 'nothing'})"
    stale = [] if move.back or tag.FORCED in tags else [tag.FORCED]
    if newest == move:
        stale += [tag.REPLACED, tag.REPLACED_BY]
    else:
        tags |= {tag.REPLACED: newest.time, tag.REPLACED_BY: f"models:/{name}/{newest.version}"}
    try:
        there = client.get_model_version(name, move.version).tags
        for key in stale:
            if key in there:
                client.delete_model_version_tag(name, move.version, key)
        for key, value in tags.items():
            client.set_model_version_tag(name, move.version, key, value)
        if promotion.before and exists(promotion.before):
            for key, value in ((tag.REPLACED, move.time), (tag.REPLACED_BY, promotion.address)):
                client.set_model_version_tag(*split_version(promotion.before), key, value)
    except MlflowException as error:
        promotion.notes.append(f"the alias has moved, but not all tags could be set ({reason(error)})")


def _left_behind(name: str, alias: str, backbone: str) -> list[str]:
    """A note if no classifier moves, but the alias points to a classifier of another backbone."""
    version = alias_version(registered_model(name), alias)
    address = f"models:/{name}/{version}"
    if not version or not exists(address):
        return []
    parent = MlflowClient().get_model_version(name, version).tags.get(tag.PARENT_MODEL, "an unknown model")
    if parent in addresses_of_model(backbone):
        return []
    return [f"the {alias} of {name} stays {address}, which was made on {parent}"]
