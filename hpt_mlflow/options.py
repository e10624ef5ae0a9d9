"""How a setting is declared, once and with all that is true of it, and how a value is checked against that."""

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
    main: bool = False,
    changes_result: bool = True,
    changes_trial: bool = True,
    passed_on: bool = False,
    logged: bool = True,
    arguments: bool = False,
) -> Any:
    """A field of a settings class with all that is true of it.

    Args:
        help: what it means, with its unit.
        minimum, maximum, above: the range of a number; above excludes its end.
        choices: the texts that it may be, looked up whenever a value is checked: it may be a registry that grows.
        main: whether it is what a stage is about, and so comes first in help texts.
        changes_result: whether another value makes another result. Data and models are identified by their content or
            version instead.
        changes_trial: for a search, whether another value makes another trial.
        passed_on: whether a stage that runs other stages passes its value on to those that have the option too.
        logged: whether a search logs it; what a resumed search may change is not.
        arguments: whether the words of a command that belong to no option are its value, too.
    """
    return field(default=default, metadata=dict(locals()))


def choices_of(entry: dataclasses.Field[Any]) -> tuple[str, ...] | None:
    """The texts that an option may be; None for any value."""
    choices = entry.metadata["choices"]
    return None if choices is None else tuple(choices)


def marked(settings: Settings | type[Settings], mark: str) -> list[str]:
    """Names of the options for which a mark, such as `passed_on`, is true."""
    return [entry.name for entry in dataclasses.fields(settings) if entry.metadata[mark]]


def passed_on(settings: Settings, stage: type[Settings]) -> dict[str, Any]:
    """The values that a stage passes on to another one."""
    taken = marked(stage, "passed_on")
    return {name: getattr(settings, name) for name in marked(settings, "passed_on") if name in taken}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Checked values of the options of a stage. Paths become str, NumPy scalars become Python numbers."""

    def __post_init__(self) -> None:
        for entry in dataclasses.fields(self):
            kind = value_type(self, entry.name)
            value = _plain(getattr(self, entry.name), kind)
            if value is not None or not _may_be_none(type(self), entry.name):
                _check(entry.name, value, kind, entry)
            # Values that mean the same are the same work.
            object.__setattr__(self, entry.name, value)


def value_type(settings: Settings | type[Settings], name: str) -> type:
    """The type of a setting, without its `| None`."""
    hint = type_hints(settings if isinstance(settings, type) else type(settings))[name]
    if isinstance(hint, types.UnionType):
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    return hint


_TYPE_HINTS: dict[type, dict[str, Any]] = {}


def type_hints(settings: type[Settings]) -> dict[str, Any]:
    """The types of all settings: evaluated once, since that takes milliseconds, and each setting asks for its own."""
    if settings not in _TYPE_HINTS:
        _TYPE_HINTS[settings] = typing.get_type_hints(settings)
    return _TYPE_HINTS[settings]


def _may_be_none(settings: type[Settings], name: str) -> bool:
    return type(None) in typing.get_args(type_hints(settings)[name])


def _plain(value: Any, kind: type) -> Any:
    """The value as a Python type, if it is a path or a NumPy scalar."""
    if kind is str and isinstance(value, os.PathLike):
        return os.fspath(value)
    # Without importing NumPy, which takes a tenth of a second.
    if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
        value = value.item()
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        with suppress(OverflowError):
            return float(value)
    return value


def _check(name: str, value: Any, kind: type, entry: dataclasses.Field[Any]) -> None:
    """Raise HptError unless `value` has the type and lies in the range of its option."""
    limits, choices = entry.metadata, choices_of(entry)
    problem, remedy = "", ""
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        problem = f"expected {kind.__name__}, got {value!r}"
    elif value == "" and not choices:
        problem, remedy = "it is empty, perhaps from a variable that is not set", "give a value, or leave it out"
    elif isinstance(value, float) and not math.isfinite(value):
        problem = f"{value} is not a finite number"
    elif choices and value not in choices:
        problem = f"{value!r} is not one of {', '.join(choices)}"
    elif limits["minimum"] is not None and value < limits["minimum"]:
        problem = f"{value} is too small; the minimum is {limits['minimum']}"
    elif limits["maximum"] is not None and value > limits["maximum"]:
        problem = f"{value} is too large; the maximum is {limits['maximum']}"
    elif limits["above"] is not None and value <= limits["above"]:
        problem = f"{value} must be greater than {limits['above']}"
    if problem:
        raise HptError(problem, remedy, setting=name)
