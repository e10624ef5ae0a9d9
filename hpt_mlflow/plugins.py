"""Packages that add methods, protocols, studies, dataset readers or stages, found by their entry points.

An entry point names a function that registers things. Those of the group `hpt_mlflow.plugins` are called before the
settings are made, so that options of their methods become settings; those of `hpt_mlflow.stages` when the stages are.
"""

from __future__ import annotations

import logging
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from hpt_mlflow.errors import one_line

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


def load_place(place: str) -> Any:
    """What `module:attribute` names. Registries hold such places, so that a name is known without importing torch."""
    module, _, attribute = place.partition(":")
    return getattr(import_module(module), attribute)
