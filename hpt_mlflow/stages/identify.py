"""The identity of a stage's work: by it, an unfinished run is resumed and a finished one is reused."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from hpt_mlflow.data.dataset import Dataset
from hpt_mlflow.options import Settings, marked, value_type
from hpt_mlflow.stages.objects import is_object
from hpt_mlflow.tracking.identity import Identity


def identify(stage: str, settings: Settings, datasets: Sequence[Dataset], parent: str | None = None) -> Identity:
    """The settings that change the result, the content of the datasets, and the parent.

    Args:
        parent: the address of the parent without `latest` or alias, or name and checksum of the file of weights.
    """
    values = {entry.name: _canonical(settings, entry.name) for entry in fields(settings)}
    if parent:
        values["parent"] = parent
    names = marked(settings, "changes_result") + (["parent"] if parent else [])
    data = [[dataset.name, dataset.digest] for dataset in datasets]
    identity = {"stage": stage, **{name: values[name] for name in names}, "data": data}
    return Identity(identity, _command(stage, settings, values))


def _canonical(settings: Settings, name: str) -> Any:
    """The value in the one form that a command line reads back."""
    value = getattr(settings, name)
    return float(value) if value is not None and value_type(settings, name) is float else value


def _command(stage: str, settings: Settings, values: Mapping[str, Any]) -> str:
    """The command that does this work, without options that have their default.

    None can be typed for an object: then it says so.
    """
    if objects := [value for value in values.values() if is_object(value)]:
        return f"call hpt_mlflow.{stage} again from Python: {objects[0]} was passed as an object"
    words = ["hpt", stage]
    for entry in fields(settings):
        value = values[entry.name]
        if value != entry.default and entry.name != "resume":
            text = str(value).lower() if isinstance(value, bool) else str(value)
            words += [f"--{entry.name.replace('_', '-')}", text]
    return shlex.join(words)
