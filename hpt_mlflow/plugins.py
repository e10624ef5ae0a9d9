"""Packages that add methods, protocols, studies, dataset readers or stages, found by their entry points.

An entry point names a function that registers things. Those of the group `hpt_mlflow.plugins` are called before the
settings are made, so that options of their methods become settings; those of `hpt_mlflow.stages` when the stages are.
"""

from __future__ import annotations

import inspect
import logging
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, TypeVar

from hpt_mlflow.errors import one_line

T = TypeVar("T")
log = logging.getLogger("hpt_mlflow")


def load_plugins(group: str) -> None:
    """Call what installed packages name under a group of entry points.

    A package that cannot be loaded is left out with a warning, so that a broken one does not stop everything else.
    """
    for entry in entry_points(group=group):
        try:
            entry.load()()
        except Exception as error:
            log.warning("the plugin %s cannot be loaded (%s); it is left out", entry.value, one_line(error))


def add_to(registry: dict[str, T], kind: str, name: str, value: T) -> None:
    """Register `value` under `name`. Registering the same again is allowed, as a notebook's cell may run twice.

    Args:
        kind: what it is, for the error.

    Raises:
        ValueError: the name is taken by something else.
    """
    if name in registry and registry[name] != value and _defined_as(registry[name]) != _defined_as(value):
        raise ValueError(f"there is already another {kind} named {name!r}")
    registry[name] = value


def _defined_as(value: object) -> object:
    """Where a function is defined; any other value is itself."""
    return (value.__module__, value.__qualname__) if inspect.isroutine(value) else value


def load_place(place: str) -> Any:
    """What `module:attribute` names. Registries hold such places, so that a name is known without importing torch."""
    module, _, attribute = place.partition(":")
    return getattr(import_module(module), attribute)
