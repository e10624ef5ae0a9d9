"""Who was champion when: the dated history of an alias, kept as tags of the registered model."""

from __future__ import annotations

import getpass
import json
import os
import socket
from contextlib import suppress
from dataclasses import dataclass, fields
from datetime import datetime, timezone

from mlflow.entities.model_registry import RegisteredModel
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from hpt_mlflow.errors import valid_unicode
from hpt_mlflow.tracking import tags as tag

CHAMPION = "champion"
TIME_FORMAT = "%Y-%m-%dT%H:%M:%S.%fZ"


@dataclass(frozen=True)
class Move:
    """One move of an alias to a version.

    Attributes:
        time: ISO, UTC, with microseconds; sorts as text.
        version: that the alias points to from then on.
        before: the version that it pointed to, or empty.
        metric, value, interval: the decisive metric of the version.
        difference: to the version before, in units of the metric; None if they were not compared.
        by: USER@HOST who did it.
        forced: the objection that was overruled, or empty.
        reason: given for overruling it.
        back: whether it returned to an earlier champion.
        classifier: address of the classifier that goes with the version, or empty.
    """

    time: str
    version: str
    before: str = ""
    metric: str = ""
    value: float | None = None
    interval: str = ""
    difference: float | None = None
    by: str = ""
    forced: str = ""
    reason: str = ""
    back: bool = False
    classifier: str = ""


def registered_model(name: str) -> RegisteredModel | None:
    """A registered model with its current aliases and tags; None if there is none."""
    try:
        return MlflowClient().get_registered_model(name)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def alias_version(model: RegisteredModel | None, alias: str) -> str:
    """The version that an alias points to, or empty."""
    return str(model.aliases.get(alias, "")) if model else ""


def moves(model: RegisteredModel | None, alias: str) -> list[Move]:
    """The history of an alias, oldest first, without tags that were overwritten by hand."""
    prefix = f"{tag.PROMOTION_PREFIX}{alias}."
    names = {field.name for field in fields(Move)} - {"time"}
    history = []
    for key, text in (model.tags if model else {}).items():
        if not key.startswith(prefix):
            continue
        # The tag may be no time, no JSON, or JSON of another kind.
        with suppress(ValueError, TypeError, AttributeError):
            datetime.strptime(key.removeprefix(prefix), TIME_FORMAT)
            known = {name: value for name, value in json.loads(text).items() if name in names}
            history.append(Move(key.removeprefix(prefix), **known))
    return sorted(history, key=lambda move: move.time)


def now_as_text() -> str:
    """The time of a move."""
    return datetime.now(timezone.utc).strftime(TIME_FORMAT)


def champion_stack(history: list[Move], now: str) -> list[str]:
    """The versions that can be restored, the present champion last.

    A promotion is pushed on what it replaced, and going back pops what lies above: so going back twice leads further
    back, not to and fro.

    Args:
        history: oldest first.
        now: the version that the alias points to, which may have been set without a record; or empty.
    """
    stack: list[str] = []
    for move in history:
        if move.back and move.version in stack:
            while stack[-1] != move.version:
                stack.pop()
            continue
        stack += [version for version in (move.before, move.version) if version and [version] != stack[-1:]]
    return [*stack, now] if now and [now] != stack[-1:] else stack


def user_at_host() -> str:
    """USER@HOST: MLflow's user if one is set, else the user of the machine."""
    user = os.environ.get("MLFLOW_TRACKING_USERNAME")
    # A container's user may have no name.
    with suppress(OSError, KeyError, ImportError):
        user = user or getpass.getuser()
    return valid_unicode(f"{user or 'unknown'}@{socket.gethostname()}")
