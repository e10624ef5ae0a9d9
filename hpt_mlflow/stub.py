"""`hpt_mlflow/__init__.pyi`: the types of the public names, for editors and mypy."""

from __future__ import annotations

import inspect
import json
import types
import typing
from collections.abc import Mapping
from typing import Any

from hpt_mlflow.stages import Stage

LONGEST_LINE = 120
HEADER = """# Written by `make generate` from the settings.
from os import PathLike
from typing import Literal, TypeAlias

{imports}

# Paths become text.
Text: TypeAlias = str | PathLike[str]
_PLACES: dict[str, str]

__all__ = [
{names}
]
"""


def stub_text(stages: Mapping[str, Stage], places: Mapping[str, str]) -> str:
    """The text of the stub.

    Args:
        places: the module of each public name that is not a stage.
    """
    imports = "\n".join(sorted((f"from {place} import {name} as {name}" for name, place in places.items()), key=_order))
    names = "\n".join(f'    "{name}",' for name in sorted([*stages, *places], key=_case))
    functions = [_function(name, stage) for name, stage in stages.items()]
    return "\n".join([HEADER.format(imports=imports, names=names), *functions])


def _function(name: str, stage: Stage) -> str:
    function: Any = stage.function
    signature = inspect.signature(function)
    parameters = map(_parameter, signature.parameters.values())
    doc = (inspect.getdoc(function) or "").replace("\n", "\n    ")
    doc = "\n".join(line.rstrip() for line in doc.splitlines())
    return "\n".join(
        [f"def {name}(", "    *,", *parameters, f") -> {signature.return_annotation}:", f'    """{doc}', '    """', ""]
    )


def _parameter(parameter: inspect.Parameter) -> str:
    """A line, or what `ruff format` makes of one that is too long."""
    line = f"    {parameter.name}: {_type(parameter.annotation)} = {_literal(parameter.default)},"
    if len(line) <= LONGEST_LINE:
        return line
    return line.replace("Literal[", "Literal[\n        ", 1).replace("] = ", "\n    ] = ", 1)


def _type(annotation: Any) -> str:
    """An annotation as source."""
    if typing.get_origin(annotation) is typing.Literal:
        return f"Literal[{', '.join(map(_literal, typing.get_args(annotation)))}]"
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return " | ".join(map(_type, typing.get_args(annotation)))
    if annotation is type(None):
        return "None"
    return "Text" if annotation is str else str(annotation.__name__)


def _literal(value: Any) -> str:
    return json.dumps(value) if isinstance(value, str) else repr(value)


def _case(name: str) -> tuple[bool, str]:
    """Classes first, as linters sort names."""
    return not name[0].isupper(), name


def _order(line: str) -> tuple[str, bool, str]:
    _, place, _, name, *_ = line.split()
    return (place, *_case(name))
