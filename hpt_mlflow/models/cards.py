"""Cards: everything needed to use a file of tensors, as JSON next to it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from hpt_mlflow.errors import HptError, one_line

Card = TypeVar("Card")


def write_card(file: Path, format: str, values: Mapping[str, Any]) -> None:
    """Write a card.

    Args:
        format: the name and version of its layout.
    """
    file.write_text(json.dumps({"format": format, **values}, indent=2) + "\n")


def read_card(file: Path, format: str, name: str, make: Callable[[dict[str, Any]], Card]) -> Card:
    """Read a card.

    Args:
        format: the only layout that is read.
        name: of the model, in errors.
        make: a card from its values; raises ValueError, KeyError or TypeError if they are wrong.

    Raises:
        HptError: the card is damaged, or has another format.
    """
    try:
        values: dict[str, Any] = json.loads(file.read_text())
        if values.pop("format") != format:
            raise HptError(f"{name} was made by another version of hpt_mlflow; this one reads {format}")
        return make(values)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise HptError(f"{name}: {file.name} is damaged ({one_line(error)})") from error


def check_types(values: Mapping[str, Any], types: Mapping[str, type]) -> None:
    """Raise TypeError if a value does not have exactly the given type; missing values are accepted."""
    for key, expected in types.items():
        if key in values and type(values[key]) is not expected:
            raise TypeError(f"{key} is {values[key]!r}")
