"""Moving an alias of registered models, with the tags and the record that say why: all of it, or nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from hpt_mlflow.tracking import tags as tag
from hpt_mlflow.tracking.models.alias_history import Move, alias_version, registered_model


@dataclass(frozen=True)
class Target:
    """A version that an alias moves to.

    Attributes:
        name: of its registered model.
        move: names the version, and becomes the record.
        tags: of the version.
    """

    name: str
    move: Move
    tags: Mapping[str, str]


def move_aliases(alias: str, targets: Sequence[Target]) -> None:
    """Tag each version, record its move and make it; if one of these fails, undo those before it.

    An alias moves after its tags and its record, so that a process that is killed in between has not promoted anything.

    Raises whatever MLflow does.
    """
    with ExitStack() as undo:
        for target in targets:
            _tag_version(target, undo)
            _record(target, alias, undo)
            _point(target, alias, undo)
        undo.pop_all()


def _tag_version(target: Target, undo: ExitStack) -> None:
    client, version = MlflowClient(), target.move.version
    before = client.get_model_version(target.name, version).tags
    for key, value in target.tags.items():
        if key in before:
            undo.callback(_try, client.set_model_version_tag, target.name, version, key, before[key])
        else:
            undo.callback(_try, client.delete_model_version_tag, target.name, version, key)
        client.set_model_version_tag(target.name, version, key, value)


def _record(target: Target, alias: str, undo: ExitStack) -> None:
    client, key = MlflowClient(), f"{tag.PROMOTION_PREFIX}{alias}.{target.move.time}"
    entry = {name: value for name, value in asdict(target.move).items() if name != "time" and value not in ("", None)}
    undo.callback(_try, client.delete_registered_model_tag, target.name, key)
    client.set_registered_model_tag(target.name, key, json.dumps(entry))


def _point(target: Target, alias: str, undo: ExitStack) -> None:
    client = MlflowClient()
    before = alias_version(registered_model(target.name), alias)
    if before:
        undo.callback(_try, client.set_registered_model_alias, target.name, alias, before)
    else:
        undo.callback(_try, client.delete_registered_model_alias, target.name, alias)
    client.set_registered_model_alias(target.name, alias, target.move.version)


def _try(call: Callable[..., Any], *arguments: str) -> None:
    """Undo what can be undone: the error that led to it is the one to report."""
    with suppress(MlflowException):
        call(*arguments)
