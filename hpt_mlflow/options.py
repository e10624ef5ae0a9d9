"""How a setting is declared: its type, default, range and meaning, and how a value is checked against them."""

from __future__ import annotations

import dataclasses
import math
import os
import types
import typing
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from hpt_mlflow.errors import HptError


def option(
    default: Any,
    help: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    choices: Collection[str] | None = None,
) -> Any:
    """A field with what the user needs to know: its meaning (with its unit), and the values that it may take.

    Choices are looked up whenever a value is checked, so they may be a registry that grows.
    """
    metadata = {"help": help, "minimum": minimum, "maximum": maximum, "above": above, "choices": choices}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What every stage shares: checking. Paths become texts, numbers of NumPy those of Python, 1 of a float 1.0."""

    def __post_init__(self) -> None:
        for entry in dataclasses.fields(self):
            kind = value_type(self, entry.name)
            value = _plain(getattr(self, entry.name), kind)
            if value is not None or not _may_be_none(type(self), entry.name):
                _check(entry.name, value, kind, entry.metadata)
            # As if it had been given so: the same values are the same work.
            object.__setattr__(self, entry.name, value)


def value_type(settings: Settings | type[Settings], name: str) -> type:
    """The type of a setting, without its `| None`."""
    hint = typing.get_type_hints(settings if isinstance(settings, type) else type(settings))[name]
    if isinstance(hint, types.UnionType):
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    return hint


def _may_be_none(settings: type[Settings], name: str) -> bool:
    return type(None) in typing.get_args(typing.get_type_hints(settings)[name])


def _plain(value: Any, kind: type) -> Any:
    """The value as one of Python's own types, where it has another one that means the same."""
    if kind is str and isinstance(value, os.PathLike):
        return os.fspath(value)
    # NumPy takes a tenth of a second to import, and whoever has a number of it has imported it.
    if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
        value = value.item()
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        with suppress(OverflowError):
            return float(value)
    return value


def _check(name: str, value: Any, kind: type, allowed: typing.Mapping[str, Any]) -> None:
    """Raise HptError unless `value` has the type and lies in the range of its option."""
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise HptError(f"{name}: expected {kind.__name__}, got {value!r}")
    if value == "" and not allowed["choices"]:
        raise HptError(f"{name}: it is empty, perhaps from a variable that is not set; give a value, or leave it out")
    if isinstance(value, float) and not math.isfinite(value):
        raise HptError(f"{name}: {value} is not a finite number")
    if allowed["choices"] and value not in allowed["choices"]:
        raise HptError(f"{name}: {value!r} is not one of {', '.join(allowed['choices'])}")
    if allowed["minimum"] is not None and value < allowed["minimum"]:
        raise HptError(f"{name}: {value} is too small; the least is {allowed['minimum']}")
    if allowed["maximum"] is not None and value > allowed["maximum"]:
        raise HptError(f"{name}: {value} is too large; the most is {allowed['maximum']}")
    if allowed["above"] is not None and value <= allowed["above"]:
        raise HptError(f"{name}: {value} must be greater than {allowed['above']}")
